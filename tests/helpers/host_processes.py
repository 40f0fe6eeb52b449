"""`llm-jax train` as several processes of this machine, as on several hosts."""

import subprocess
from pathlib import Path

from tests.helpers import compiler
from tests.helpers.command_line import Outcome, start, wait
from tests.hosts.connections import free_port


def start_hosts(
    count: int,
    devices: int,
    *words: object,
    last: tuple = (),
    slow: int = -1,
    facts: Path | None = None,
    **environment: str,
) -> list[subprocess.Popen]:
    """Starts `count` processes of `devices` simulated devices each.

    Args:
      last: words for the last host only.
      slow: host whose batches take half a second longer than they need.
      facts: folder where every process leaves the indices of the training rows it made.
    """
    port = free_port()
    flags = compiler.devices(devices) | environment
    return [
        start(
            *(facts or "", index, slow, "train", *words),
            *("--hosts.address", f"localhost:{port}", "--hosts.count", count, "--hosts.index", index),
            *(last if index == count - 1 else ()),
            module="tests.helpers.observed_host",
            environment=flags,
        )
        for index in range(count)
    ]


def wait_hosts(processes: list[subprocess.Popen], seconds: float = 200) -> list[Outcome]:
    """What every process came to."""
    return [wait(process, seconds) for process in processes]
