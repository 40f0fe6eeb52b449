"""Processes of CPUs that are connected before anything else may keep one of them."""

import pytest

from tests.helpers.command_line import start, wait
from tests.hosts.lines import free_port


@pytest.mark.slow
def test_all_groups_are_connected_together_and_none_later():
    # gloo tells of every group that it connects, which takes all members within 30 seconds.
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    port = free_port()
    processes = [
        start(port, index, module="tests.sharding.connected_processes", environment=flags) for index in range(2)
    ]
    for outcome in [wait(process) for process in processes]:
        assert outcome.code == 0, outcome
        lines = outcome.out.splitlines()
        connected, trained = lines.index("connected"), lines.index("trained")
        told = [number for number, line in enumerate(lines) if line.startswith("[Gloo]")]
        # Two groups of the process's two devices, one of each with its fellow and one of all four.
        assert told and max(told) < connected < trained, outcome.out
