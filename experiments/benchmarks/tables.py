"""Tables that benchmarks print, and publish into experiments/README.md between markers that carry their name."""

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

from llm_jax.analysis.markdown import publish as publish_between_markers

README = Path(__file__).parent.parent / "README.md"
_PAUSE = 0.05
"""Seconds."""


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds per call of each contender, taken in turn, round after round, so that all see the same machine.

    A call must return only when its work is done. Before each is a pause: OpenMP's threads, which PyTorch uses, wait
    for their next work actively for a few milliseconds, and would take a core from the call after theirs.
    """
    for run in contenders.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """Median, under the name that tables use."""
    return statistics.median(values)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine(*packages: str) -> str:
    """One line on what measured: date, processor, Python and package versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{date.today()}, {_processor()}, Python {platform.python_version()}, {versions}"


def threads() -> int:
    """Threads that a peer shall use: OMP_NUM_THREADS, else all cores this process may use."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def publish(name: str, text: str) -> None:
    """Puts `text` and the command line that made it between the markers of `name` in experiments/README.md.

    Raises:
      ValueError: if the README has no such markers.
    """
    command = shlex.join(["python", f"experiments/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    publish_between_markers(README, name, f"`{command}`\n\n{text}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores {names[0]}" if names else platform.machine()
