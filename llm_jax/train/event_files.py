"""TensorBoard's event files: the curves of metrics.jsonl once more. A run can do without them."""

import functools
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.summary import scalar

from llm_jax.core.aside import Aside

# protobuf makes this class when the module is imported: no type checker sees it there.
_EVENT: Any = importlib.import_module("tensorboardX.proto.event_pb2").Event

_FLUSH_SECONDS = 1.0
"""Between two flushes, each of which waits for the disk."""


class EventFiles:
    """Writes scalars in a thread of its own. Where they cannot be written, or not as fast as they come, one message
    tells, and none are written any more.

    tensorboardX's own SummaryWriter has a thread too; when the disk is full it dies, and its callers wait forever.

    Args:
      folder: made with the first scalar.
      say: is given the message, in that thread.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._writer: EventsWriter | None = None
        self._dropped = False
        self._flushed = 0.0
        self._aside = Aside("event files", self._drop)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of a step by name."""
        if not self._dropped and not self._aside.do(functools.partial(self._write, step, dict(scalars), time.time())):
            self._drop(TimeoutError(f"nothing was written to {self._folder} for long"))

    def close(self) -> None:
        """Waits a few seconds at most for what is still to be written."""
        self._aside.do(self._finish)
        self._aside.close()

    def _write(self, step: int, scalars: dict[str, float], now: float) -> None:
        if self._dropped:
            return
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self._folder / "events"))
        for name, value in scalars.items():
            self._writer.write_event(_EVENT(wall_time=now, step=step, summary=scalar(name, value)))
        if now - self._flushed > _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = now

    def _finish(self) -> None:
        if self._writer is not None and not self._dropped:
            self._writer.close()

    def _drop(self, error: BaseException) -> None:
        if not self._dropped:
            self._dropped = True
            self._say(
                f"TensorBoard's event files are not written any more ({error}); the run continues, and its "
                "metrics.jsonl has everything that they have"
            )
