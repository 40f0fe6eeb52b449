"""Hooks as configs: what a user attaches to the training loop."""

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
    """What a hook may use of the run that it is attached to."""

    experiment: Any
    """The Experiment."""
    directory: RunDirectory
    programs: Programs
    tokenizer: Tokenizer | None
    first: int
    """Updates that were made before this start of the run."""
    record: Callable[..., None]
    """(kind, step, **values) adds a record to metrics.jsonl and the trackers. Only the first host writes it."""
    say: Callable[[str], None]
    """Shows a line above the progress display, on the first host."""


@configclass
class HookConfig(abc.ABC):
    """What is done beside the updates of a run. Derive a configclass from it to attach a hook of your own.

    Hooks decide nothing of what is computed unless one returns a state: a run may be resumed with others.
    """

    @abc.abstractmethod
    def build(self, run: TrainingRun) -> Hook:
        """The hook that the loop calls."""
