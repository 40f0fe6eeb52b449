"""Several hosts of one job as threads of one process: connections between them, over real sockets."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llm_jax.hosts.connection import Connection
from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.process_info import ProcessInfo


def free_port() -> int:
    """A port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Ends(list):
    """Messages that ended the connections: (host, message)."""

    def of(self, host: int) -> Callable[[str], None]:
        """What the connection of a host calls."""
        return lambda message: self.append((host, message))


@contextlib.contextmanager
def connections(count: int, absent: tuple[int, ...] = (), **seconds: float) -> Iterator[tuple[list[Connection], Ends]]:
    """The open connections of all hosts but those absent, and what ended them."""
    ends, port = Ends(), free_port()
    config = HostsConfig(**{"arrival_seconds": 20, "silence_seconds": 20} | seconds)
    present = [index for index in range(count) if index not in absent]
    places = [ProcessInfo(f"localhost:{port}", count, index) for index in present]
    opened = [Connection(place, config, f"node{place.index}", ends.of(place.index)) for place in places]
    try:
        everywhere(opened, lambda connection: connection.open())
        if not absent:  # as `joined` does: a telling reaches those who have been heard of
            everywhere(opened, lambda connection: connection.gather("open"))
        yield opened, ends
    finally:
        for connection in opened:
            connection.close()


def everywhere(members: list[Any], act: Callable[[Any], Any]) -> list[Any]:
    """Results of `act` on every member, each in a thread of its own."""
    with ThreadPoolExecutor(len(members)) as threads:
        return list(threads.map(act, members))
