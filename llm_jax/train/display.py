"""What a run shows while it trains. Nobody waits for it: a terminal that is stopped, a pipe that nobody reads or a full
disk under a redirected log costs lines, never a step."""

import datetime
import functools
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm_jax.core.aside import Aside

_QUIET_SECONDS = 60.0
"""Elsewhere than on a terminal, a line comes after so long even where no log is due."""


class LogConsole(Console):
    """A console on stderr that a reader may leave: rich's own would then end the process."""

    def __init__(self, quiet: bool = False):
        super().__init__(stderr=True, quiet=quiet)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """A live bar on a terminal; elsewhere a line at the first step, every `every` steps, and at the last.

    Use as a context. The time left is that of the steps still to come at the mean pace since `begin`, evaluations and
    saves included.
    """

    def __init__(self, first: int, last: int, every: int, console: Console | None = None):
        self._console = console or LogConsole()
        self._first, self._last, self._every = first, last, every
        self._begun = self._shown = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=last, completed=first)
        self._aside = Aside("display")

    def __enter__(self) -> "Display":
        self._aside.do(self._bar.start)
        return self

    def __exit__(self, *_: Any) -> None:
        self._aside.do(self._bar.stop)
        self._aside.close()

    def begin(self) -> None:
        """The first step begins: all programs that it needs are compiled."""
        self._begun = self._shown = time.monotonic()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the figures of a step, rates where there are any."""
        text = f"step {step}/{self._last}  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}"
        if "tokens_per_second" in values:
            text += f"  {values['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in values:
            text += f"  MFU {values['mfu']:.1%}"
        if self._console.is_terminal:
            self._aside.do(functools.partial(self._bar.update, self._task, completed=step, description=text))
        elif self._is_due(step):
            self._shown = time.monotonic()
            left = (self._last - step) * (self._shown - self._begun) / (step - self._first)
            self.print(f"{text}  {datetime.timedelta(seconds=round(left))} left")

    def print(self, text: str) -> None:
        """A line above the bar."""
        self._aside.do(functools.partial(self._console.print, text, highlight=False, markup=False, soft_wrap=True))

    def _is_due(self, step: int) -> bool:
        late = time.monotonic() - self._shown > _QUIET_SECONDS
        return late or step in (self._first + 1, self._last) or step % self._every == 0
