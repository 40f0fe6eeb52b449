"""What a run has learned: its weights, with the model and the tokenizer that they belong to."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from llm_jax.checkpoints import restore
from llm_jax.core.checks import check, given
from llm_jax.core.run_directory import RunDirectory
from llm_jax.data.batch import Batch
from llm_jax.experiment import Experiment
from llm_jax.models.build import abstract_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.tokenizers import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Trained:
    """The model of a run at one of its checkpoints. `of` reads it."""

    experiment: Experiment
    tokenizer: Tokenizer
    model: Transformer
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
        found = restore.readable_records(run.checkpoints)
        check(bool(found) or run.experiment_file.exists(), f"{run.path} is not a run directory")
        check(bool(found), f"{run.path} has no checkpoint that can be read: train it, or wait for its first save")
        tokenizer = load_tokenizer(run.tokenizer)
        # The record of a checkpoint says more surely than any other file what was trained.
        experiment = run.parsed(found.get(max(found) if step is None else step, found[max(found)]).run.experiment)
        if best:
            step = restore.best_step(run.checkpoints, experiment.checkpoint.best_metric)
        model = Transformer(experiment.model, experiment.precision)
        shapes, _ = abstract_parameters(model)
        part = "params" if experiment.update.ema_decay is None else "ema"
        restored = restore.restore_params(run.checkpoints, shapes, tokenizer.digest, step, part)
        return cls(experiment, tokenizer, model, given(restored, f"the checkpoints of {run.path} are gone").state)

    def held_out(self, cache: Path) -> Iterator[Batch]:
        """The text of every set that the run was evaluated on, tokenised in `cache` if it is not there."""
        experiment = self.experiment
        objective = experiment.objective
        dataset = experiment.data.build(self.tokenizer, cache, experiment.seed, objective.example)
        for found in dataset.evaluation("validation", 0, 1, experiment.evaluation.max_bytes):
            yield from map(objective.batch, found.batches)
