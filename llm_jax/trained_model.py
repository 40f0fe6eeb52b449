"""What a run has learned: its weights, with the model and the tokenizer that they belong to."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from llm_jax.core.checks import check, given
from llm_jax.core.run_directory import RunDirectory
from llm_jax.evals import PerplexityConfig
from llm_jax.experiment import Experiment
from llm_jax.models.build import Model, build
from llm_jax.objectives.objective import AnyBatch
from llm_jax.starts.run_start import read_run, restored_weights
from llm_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The model of a run at one of its checkpoints. `of` reads it."""

    experiment: Experiment
    tokenizer: Tokenizer
    model: Model
    params: Any
    """The weights that are meant for use: their moving average if the run keeps one."""

    @classmethod
    def of(cls, run: RunDirectory, step: int | None = None, best: bool = False) -> Self:
        """
        Args:
          step: of the checkpoint; None for the newest.
          best: whether to take the checkpoint with the lowest `checkpoint.best_metric`.

        Raises:
          ValueError: for a run without a tokenizer, or without such a checkpoint.
        """
        check(step is None or not best, f"--step {step} and --best each choose a checkpoint: leave one of them out")
        experiment, tokenizer, step = read_run(run, step, best)
        tokenizer = given(tokenizer, f"{run.path} was trained on tokens: it has no tokenizer for text")
        restored = restored_weights(run, experiment, experiment.precision, tokenizer.digest, step)
        model = build(experiment.model, experiment.precision)
        return cls(experiment, tokenizer, model, restored.state)

    def held_out(self, cache: Path) -> Iterator[AnyBatch]:
        """The validation sets of the run's data, tokenised in `cache` if they are not there; of each the sample that
        the run's PerplexityConfig scores, or all of it where the run has none."""
        experiment = self.experiment
        limits = [one.max_bytes for one in experiment.evaluations if isinstance(one, PerplexityConfig)]
        dataset = experiment.dataset(self.tokenizer, cache)
        for found in dataset.evaluation("validation", 0, 1, limits[0] if limits else None):
            yield from map(experiment.objective.batch, found.batches)
