"""Runs a tracker in a background thread, so that training neither waits for it nor sees its errors."""

import functools
from collections.abc import Callable, Mapping

from llm_jax.core.aside import Aside
from llm_jax.core.components import short_name
from llm_jax.trackers.tracker import FigureWriter, TrackedRun, Tracker


class Tracking:
    """Passes the metrics of a run to one tracker. If the tracker raises, or falls behind, it is disabled, and one
    message says so.

    Args:
      tracker: opened with the first metrics.
      say: called with the message, from any thread.
    """

    def __init__(self, tracker: Tracker, run: TrackedRun, say: Callable[[str], None]):
        self._tracker, self._run, self._say = tracker, run, say
        self._writer: FigureWriter | None = None
        self._dropped = False
        self._aside = Aside(f"tracker {short_name(type(tracker))}", self._drop)

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Returns at once."""
        if not self._dropped and not self._aside.do(functools.partial(self._write, kind, step, dict(figures))):
            self._drop(TimeoutError("it has taken nothing for long"))

    def close(self) -> None:
        """Waits until all metrics are written, at most the tracker's `patience`."""
        self._aside.do(self._close)
        if not self._aside.close(self._tracker.patience):
            self._drop(TimeoutError(f"it has not written everything {self._tracker.patience:g} s after the end"))

    def _write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        if self._dropped:
            return
        if self._writer is None:
            self._writer = self._tracker.open(self._run)
        self._writer.write(kind, step, figures)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _drop(self, error: BaseException) -> None:
        if not self._dropped:
            self._dropped = True
            self._say(
                f"tracker {short_name(type(self._tracker))} is given no figures any more ({type(error).__name__}: "
                f"{error}); the run continues, and its {self._run.directory.metrics_file.name} has all of them"
            )
