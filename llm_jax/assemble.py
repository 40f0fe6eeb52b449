"""assemble(): the single composition root, which builds the parts of an Experiment."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from llm_jax.core import config_text
from llm_jax.core.checks import check
from llm_jax.data.feed import global_batch, host_share
from llm_jax.data.pipeline import Dataset
from llm_jax.experiment import Experiment
from llm_jax.models.build import Model, build
from llm_jax.objectives import special_tokens
from llm_jax.objectives.objective import AnyBatch, Objective
from llm_jax.sharding import axes, partition
from llm_jax.sharding.partition import Layout
from llm_jax.starts.fit import Fit
from llm_jax.starts.start import Start, check_tokens
from llm_jax.tokenizers import Tokenizer
from llm_jax.train.programs import Programs, programs
from llm_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts of an experiment. Nothing is computed or allocated on a device until a part is used."""

    experiment: Experiment
    tokenizer: Tokenizer | None
    dataset: Dataset
    programs: Programs
    fit: Fit | None
    """Converts the weights of the experiment's start to parameters; None without a start, or if the run resumes."""
    frozen: Mapping[str, Fit]
    """Converts the weights of each frozen model; empty if the run resumes."""

    @property
    def layout(self) -> Layout:
        """The mesh and the strategy."""
        return self.programs.layout

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        state = self.programs.fresh() if self.fit is None else self.programs.begin(self._loaded(self.fit))
        # The random weights of frozen models are dropped before the loaded ones are placed, so that only one is held.
        state = dataclasses.replace(state, frozen={})
        return self.programs.with_frozen(state, {name: self._loaded(fit) for name, fit in self.frozen.items()})

    def _loaded(self, fit: Fit) -> Any:
        """The parameters of `fit` in host memory, from which they are placed on all devices."""
        with partition.deactivated():
            return jax.device_get(fit.parameters(self.experiment.seed))

    def place(self, rows: dict) -> AnyBatch:
        """A batch over all devices, from the stacked rows of this process."""
        return global_batch(self.experiment.objective.batch(rows), self.layout.rows)

    @property
    def share(self) -> tuple[int, int]:
        """(host, hosts): the part of every batch that this process reads."""
        return host_share(self.layout.rows, self.experiment.data.batch_size)


def assemble(experiment: Experiment, cache: Path, begun: bool = False) -> Assembly:
    """Builds the parts of `experiment`. Creates tokenizer and tokenised data in `cache` if they do not exist.

    Args:
      begun: whether the run restores a checkpoint, so that the weights of its start are not needed.

    Raises:
      ValueError: for data that cannot be read, a vocabulary larger than the model's, a mesh that does not match the
        devices or the batch, or weights of another model or tokenizer.
    """
    tokenizer = _tokenizer(experiment, cache)
    start = None if begun else experiment.start
    fit = None if start is None else _fit(start, build(experiment.model, experiment.precision), tokenizer)
    frozen = (
        {}
        if begun
        else {one.name: _fit(one.start, one.build(experiment.precision), tokenizer) for one in experiment.frozen}
    )
    layout = Layout.of(experiment.sharding)
    _check_rows(experiment, layout)
    dataset = experiment.dataset(tokenizer, cache)
    names = special_tokens.created(experiment.objective.special_tokens(experiment.data.sequence_length), tokenizer)
    vocab_size, needed = experiment.model.vocab_size, dataset.vocab_size + len(names)
    check(
        vocab_size is not None and needed <= vocab_size,
        f"the data have {dataset.vocab_size} different "
        f"tokens{f', the objective {len(names)} of its own' * bool(names)} and model.vocab_size is {vocab_size}: it "
        f"must be at least {needed}",
    )
    return Assembly(experiment, tokenizer, dataset, experiment_programs(experiment, layout), fit, frozen)


def _fit(start: Start, model: Model, tokenizer: Tokenizer | None) -> Fit:
    fit = Fit.of(start, model)
    if tokenizer is not None:
        check_tokens(fit.weights, tokenizer, start.resized_vocabulary)
    return fit


def _tokenizer(experiment: Experiment, cache: Path) -> Tokenizer | None:
    if experiment.tokenizer is None:
        return None
    source, texts = experiment.data.text("train"), experiment.objective.texts
    # Only an objective that reads records selects text.
    selection = "" if type(experiment.objective).texts is Objective.texts else config_text.digest(experiment.objective)
    return experiment.tokenizer.build(
        lambda: (text for document in source for text in texts(document.text)), cache, source.digest + selection
    )


def _check_rows(experiment: Experiment, layout: Layout) -> None:
    rows, parts = experiment.data.batch_size, layout.parts(axes.BATCH)
    at_once = rows // experiment.update.accumulate
    check(
        at_once % parts == 0,
        f"data.batch_size is {rows} and update.accumulate {experiment.update.accumulate}: the {at_once} rows of a "
        f"microbatch are divided over {parts} devices; set their number to a multiple of {parts}, or reduce the mesh "
        "axes of the batch",
    )


def experiment_programs(experiment: Experiment, layout: Layout) -> Programs:
    """The compiled functions of `experiment` for a layout, whose devices may be abstract (AOT)."""
    return programs(
        build(experiment.model, experiment.precision),
        experiment.objective,
        experiment.optimizer,
        experiment.update,
        layout,
        experiment.steps,
        experiment.seed,
        {one.name: one.build(experiment.precision) for one in experiment.frozen},
    )
