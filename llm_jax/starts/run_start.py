"""Initial weights from another run."""

from typing import Any

from llm_jax.checkpoints import restore
from llm_jax.checkpoints.restore import Restored
from llm_jax.core import config_text, paths
from llm_jax.core.checks import check, check_not_negative, given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.core.run_directory import RunDirectory
from llm_jax.models.build import abstract_parameters, build
from llm_jax.starts.start import Start, Weights
from llm_jax.tokenizers.folder import load_tokenizer
from llm_jax.tokenizers.pipelines import token_ids
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class RunStart(Start):
    """The evaluation weights of a run: the moving average if it has one. Optimizer state, step and data position start
    from zero. To keep these as well, use `llm-jax train --from`."""

    run: str
    """The run directory."""
    step: int | None = None
    """Step of the checkpoint; None: the newest."""
    best: bool = False
    """Whether to use the checkpoint with the lowest `checkpoint.best_metric` of the run."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.step is None or not self.best,
            f"start.step is {self.step} and start.best is set: each chooses a checkpoint; remove one of them",
        )
        check_not_negative(step=self.step or 0)

    def find(self) -> Weights:
        run = RunDirectory(paths.at(self.run))
        experiment, tokenizer, step = read_run(run, self.step, self.best)
        digest = None if tokenizer is None else tokenizer.digest

        def load(precision: Precision) -> Any:
            return restored_weights(run, experiment, precision, digest or "none", step).state

        def tokens() -> dict[str, int]:
            return {} if tokenizer is None else token_ids(tokenizer.pipeline())

        where = f"{self.run}" if step is None else f"{self.run}, checkpoint {step}"
        return Weights(where, experiment.model, tokens, digest, load)


def read_run(run: RunDirectory, step: int | None, best: bool) -> tuple[Any, Tokenizer | None, int | None]:
    """The experiment of a run's checkpoint, its tokenizer (None without one), and the step of the checkpoint (None for
    the newest).

    Raises:
      ValueError: if there is no run, or no readable checkpoint.
    """
    found = restore.readable_records(run.checkpoints)
    check(bool(found) or run.experiment_file.exists(), f"{run.path} is not a run directory")
    check(bool(found), f"{run.path} has no readable checkpoint: train it, or wait for its first save")
    # The record of a checkpoint is the most reliable source for the experiment that was trained.
    text = found.get(max(found) if step is None else step, found[max(found)]).run.experiment
    with run.own_types(text):
        experiment = config_text.parse(text)
        tokenizer = None if experiment.tokenizer is None else load_tokenizer(run.tokenizer)
    return (
        experiment,
        tokenizer,
        restore.best_step(run.checkpoints, experiment.checkpoint.best_metric) if best else step,
    )


def restored_weights(
    run: RunDirectory, experiment: Any, precision: Precision, tokenizer_digest: str, step: int | None
) -> Restored:
    """The evaluation weights, with the step of their checkpoint: the moving average if the run has one, otherwise the
    parameters.

    Raises:
      ValueError: if the checkpoint is damaged, missing, or has another tokenizer.
    """
    shapes, _ = abstract_parameters(build(experiment.model, precision))
    part = "params" if experiment.update.ema_decay is None else "ema"
    found = restore.restore_params(run.checkpoints, shapes, tokenizer_digest, step, part)
    return given(found, f"the checkpoints of {run.path} were deleted: choose another run")
