"""Several processes, usually one on each host, that train together as one program.

    hosts_config.py   what options say of them: HostsConfig
    process_info.py          where this process stands: told by a scheduler, or by options
    hub.py            the switchboard that host 0 runs beside its training
    connection.py           every host's connection to it: heartbeats, exchanges, the end of all if one is lost
    stop.py           all hosts stop after the same step
    facts.py          what must be the same everywhere: experiment, code, versions
    process_group.py         the hosts as training uses them: Hosts, a single process, and ProcessGroup, several

"Host" means one process of the job here; host 0 leads: it alone writes records, card, samples and report.
"""
