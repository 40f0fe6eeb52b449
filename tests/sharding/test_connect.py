"""Processes of CPUs that are connected before anything else may keep one of them."""

import pytest

from tests.helpers import compiler
from tests.helpers.command_line import start, wait
from tests.hosts.connections import free_port


@pytest.mark.slow
def test_all_groups_are_connected_together_and_none_later():
    # gloo tells of every group that it connects, which takes all members within 30 seconds.
    module, port = "tests.sharding.connected_processes", free_port()
    processes = [start(port, index, module=module, environment=compiler.devices(2)) for index in range(2)]
    for outcome in [wait(process) for process in processes]:
        assert outcome.code == 0, outcome
        lines = outcome.out.splitlines()
        connected, trained = lines.index("connected"), lines.index("trained")
        told = [number for number, line in enumerate(lines) if line.startswith("[Gloo]")]
        # Two groups of the process's two devices, one of each with its fellow and one of all four.
        assert told and max(told) < connected < trained, outcome.out
