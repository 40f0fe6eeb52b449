"""Step times of all processes, and the slowest process."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from llm_jax.hosts.process_group import Hosts
from llm_jax.objectives.objective import AnyBatch
from llm_jax.train.loop import Hook

_NOTABLE = 0.1
"""Fraction of a step by which a process must exceed the median to be reported."""


class Pace(Hook):
    """Every `every` steps each process sends its seconds per step to the first, which writes them as a record `hosts`.

    Processes that compute together end every step together, so step times do not show which one is slow. The time that
    each process spends until its next batch is on its devices does. The process with the longest such time is reported.
    A slow device shows only in a profile.

    Sending does not wait for other processes. The record of a step may be written a few steps later. A single process
    writes no record.
    """

    def __init__(self, hosts: Hosts, write: Callable[..., None], say: Callable[[str], None], every: int):
        self._hosts, self._write, self._say, self._every = hosts, write, say, every
        self._seconds, self._data, self._steps = 0.0, 0.0, 0
        self._reports: dict[int, dict[int, tuple[float, float]]] = {}
        hosts.on_pace(self._hear)

    def timed(self, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
        """Yields the same batches, and measures the time that this process waits for each."""
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._data += time.perf_counter() - begun
            yield batch

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self._seconds += metrics["seconds"]
        self._steps += 1
        if step % self._every == 0:
            self._hosts.report_pace((step, self._seconds / self._steps, self._data / self._steps))
            self._seconds, self._data, self._steps = 0.0, 0.0, 0
            self._write_complete()

    def on_end(self, step: int, state: Any, finished: bool) -> None:
        # Messages that the others sent before this gather have arrived when it returns.
        self._hosts.gather("last pace")
        self._write_complete()

    def _hear(self, host: int, report: tuple[int, float, float]) -> None:
        step, seconds, data = report
        self._reports.setdefault(step, {})[host] = (seconds, data)

    def _write_complete(self) -> None:
        # A copy, because the connection's thread adds to it.
        for step in [step for step, found in list(self._reports.items()) if len(found) == self._hosts.count]:
            found = self._reports.pop(step)
            by_host = [found[host] for host in range(self._hosts.count)]
            steps, data = (sorted(column) for column in zip(*by_host, strict=True))
            slowest = max(range(len(by_host)), key=lambda host: by_host[host][1])
            self._write("hosts", step, **_spread("seconds", steps), **_spread("data_seconds", data), slowest=slowest)
            median = statistics.median(data)
            if data[-1] - median > _NOTABLE * statistics.median(steps):
                self._say(
                    f"step {step}: all hosts wait for host {slowest} ({self._hosts.names[slowest]}), whose batches "
                    f"take {data[-1]:.3g} s of a step of {steps[-1]:.3g} s; the median host's take {median:.3g} s"
                )


def _spread(name: str, ordered: list[float]) -> dict[str, float]:
    return {f"{name}_min": ordered[0], f"{name}_median": statistics.median(ordered), f"{name}_max": ordered[-1]}
