"""A trace of device and host activity during some steps."""

import tempfile
from pathlib import Path

import jax

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.files import copy_folder
from llm_jax.core.paths import is_object
from llm_jax.train.hook_config import HookConfig, TrainingRun
from llm_jax.train.loop import Hook
from llm_jax.train.state import TrainState


@configclass
class ProfileConfig(HookConfig):
    """Writes a jax.profiler trace of some steps to the folder `profile` of the run directory, for TensorBoard
    (`pip install xprof`) or ui.perfetto.dev."""

    steps: tuple[int, int] = (10, 13)
    """The first and the last traced step."""

    def __post_init__(self):
        first, last = self.steps
        check(
            2 <= first <= last,
            f"steps is {self.steps}: it must be (first, last) with 2 <= first <= last; the first step compiles",
        )

    def build(self, run: TrainingRun) -> Hook:
        return _Profile(self, run)


class _Profile(Hook):
    """Waits for the device only at the beginning and at the end of the trace."""

    def __init__(self, config: ProfileConfig, run: TrainingRun):
        self._first, self._last = config.steps
        self._run, self._tracing = run, False
        self._folder = run.directory.path / "profile"
        self._copy: tempfile.TemporaryDirectory | None = None
        """Local folder of the trace for a run in an object store, to which the profiler cannot write."""

    def due(self, step: int) -> bool:
        return step in (self._first - 1, self._last)

    def on_step(self, step: int, state: TrainState) -> None:
        jax.block_until_ready(state)
        if step == self._last:
            self._stop(step)
        else:
            self._copy = tempfile.TemporaryDirectory() if is_object(self._folder) else None
            jax.profiler.start_trace(self._copy.name if self._copy else str(self._folder))
            self._tracing = True

    def on_end(self, step: int, state: TrainState, finished: bool) -> None:
        self._stop(step)

    def _stop(self, step: int) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            if self._copy is not None:
                copy_folder(Path(self._copy.name), self._folder)
                self._copy.cleanup()
            self._run.say(f"step {step}  wrote a trace to {self._folder}")
