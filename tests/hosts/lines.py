"""Several hosts of one job as threads of one process: lines between them, over real sockets."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.line import Line
from llm_jax.hosts.place import Place


def free_port() -> int:
    """A port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Ends(list):
    """What the lines were told when their job ended: (host, message)."""

    def of(self, host: int) -> Callable[[str], None]:
        """What the line of a host calls."""
        return lambda message: self.append((host, message))


@contextlib.contextmanager
def lines(count: int, absent: tuple[int, ...] = (), **seconds: float) -> Iterator[tuple[list[Line], Ends]]:
    """The open lines of all hosts but those absent, and what ended them."""
    ends, port = Ends(), free_port()
    config = HostsConfig(**{"arrival_seconds": 20, "silence_seconds": 20} | seconds)
    present = [index for index in range(count) if index not in absent]
    places = [Place(f"localhost:{port}", count, index) for index in present]
    opened = [Line(place, config, f"node{place.index}", ends.of(place.index)) for place in places]
    try:
        everywhere(opened, lambda line: line.open())
        if not absent:  # as `joined` does: a telling reaches those who have been heard of
            everywhere(opened, lambda line: line.gather("open"))
        yield opened, ends
    finally:
        for line in opened:
            line.close()


def everywhere(members: list[Any], act: Callable[[Any], Any]) -> list[Any]:
    """Results of `act` on every member, each in a thread of its own."""
    with ThreadPoolExecutor(len(members)) as threads:
        return list(threads.map(act, members))
