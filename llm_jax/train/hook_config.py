"""Configs of the hooks that a user attaches to the training loop."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

from llm_jax.core.configclass import configclass
from llm_jax.core.run_directory import RunDirectory
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.train.loop import Hook
from llm_jax.train.programs import Programs


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a run that its hooks can use."""

    experiment: Any
    """The Experiment."""
    directory: RunDirectory
    programs: Programs
    tokenizer: Tokenizer | None
    first: int
    """Number of steps completed before this start of the run."""
    record: Callable[..., None]
    """(kind, step, **values) adds a record to metrics.jsonl and the trackers. Only the first process writes it."""
    say: Callable[[str], None]
    """Prints a line above the progress display, on the first process."""


@configclass
class HookConfig(abc.ABC):
    """Config of a hook, which runs code between training steps. Derive a configclass from it for your own hook.

    A hook does not change the computation unless it returns a state. So a run may be resumed with other hooks.
    """

    @abc.abstractmethod
    def build(self, run: TrainingRun) -> Hook:
        """The hook that the loop calls."""
