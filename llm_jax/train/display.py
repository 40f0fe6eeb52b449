"""The progress display of training. It never blocks a step: with a stopped terminal, a pipe without a reader or a full
disk under a redirected log, lines are lost."""

import datetime
import functools
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm_jax.core.aside import Aside

_QUIET_SECONDS = 60.0
"""Without a terminal, a line is printed after this time even if no log is due."""


class LogConsole(Console):
    """A console on stderr that survives a broken pipe. rich's default would end the process."""

    def __init__(self, quiet: bool = False):
        super().__init__(stderr=True, quiet=quiet)

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Display:
    """A progress bar on a terminal. Otherwise a line at the first step, every `every` steps, and at the last.

    A context manager. The time left is the number of remaining steps times the mean time per step since `begin`,
    including evaluations and saves.
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
        """Starts the clock before the first step. All functions that it needs are compiled by then."""
        self._begun = self._shown = time.monotonic()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the metrics of a step, and its rates if there are any."""
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
        """Prints a line above the bar."""
        self._aside.do(functools.partial(self._console.print, text, highlight=False, markup=False, soft_wrap=True))

    def _is_due(self, step: int) -> bool:
        late = time.monotonic() - self._shown > _QUIET_SECONDS
        return late or step in (self._first + 1, self._last) or step % self._every == 0
