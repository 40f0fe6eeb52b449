"""Multi-process jobs: several processes, usually one per machine, that train together.

    hosts_config.py    the options: HostsConfig
    process_info.py    process discovery from options or a scheduler
    hub.py             the message server, which runs in process 0 beside its training
    connection.py      the connection of each process to the hub: heartbeats, gathers, end of all if one is lost
    stop.py            stops all processes after the same step
    facts.py           what must be equal in all processes: experiment, code, versions
    process_group.py   the processes as training uses them: Hosts for one process, ProcessGroup for several

Names and messages call a process of the job a "host". Process 0 leads: only it writes records, card, samples and
report.
"""
