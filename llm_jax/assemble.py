"""assemble(): the single composition root, where an Experiment becomes parts that work together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_jax.core import config, rng
from llm_jax.core.checks import check
from llm_jax.data.batch import Batch
from llm_jax.data.feed import global_batch, host_share
from llm_jax.data.pipeline import Dataset
from llm_jax.experiment import Experiment
from llm_jax.interop.hf import load_hf, read_config
from llm_jax.models.architecture import architecture
from llm_jax.models.transformer import Transformer
from llm_jax.models.upcycle import check_upcycles, has_experts, upcycled
from llm_jax.sharding import axes
from llm_jax.sharding.partition import Layout
from llm_jax.tokenizers import Tokenizer, check_same_ids
from llm_jax.train.programs import Programs, programs
from llm_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The working parts of an experiment. Nothing is computed or allocated on a device until a part is used."""

    experiment: Experiment
    tokenizer: Tokenizer | None
    dataset: Dataset
    programs: Programs
    initial_state: Callable[[], TrainState]
    """The state before the first update."""

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.programs.layout

    def place(self, rows: dict) -> Batch:
        """A batch over all devices from this host's stacked rows."""
        return global_batch(self.experiment.objective.batch(rows), self.layout.rows)

    @property
    def share(self) -> tuple[int, int]:
        """(host, hosts): which part of every batch this process reads."""
        return host_share(self.layout.rows, self.experiment.data.batch_size)


def assemble(experiment: Experiment, cache: Path) -> Assembly:
    """Builds the parts of `experiment`; tokenizer and tokenised data are made in `cache` if they are not there.

    Raises:
      ValueError: for data that cannot be read, a vocabulary larger than the model's, or a mesh that does not fit.
    """
    tokenizer = _tokenizer(experiment, cache)
    if experiment.start is not None and tokenizer is not None:
        check_same_ids(experiment.start, tokenizer)
    layout = Layout.of(experiment.sharding)
    _check_rows(experiment, layout)
    dataset = experiment.data.build(tokenizer, cache, experiment.seed, experiment.objective.example)
    vocab_size = experiment.model.vocab_size
    check(
        vocab_size is not None and dataset.vocab_size <= vocab_size,
        f"the data have {dataset.vocab_size} different tokens and model.vocab_size is {vocab_size}: "
        "the model must have at least as many",
    )
    made = experiment_programs(experiment, layout)
    return Assembly(experiment, tokenizer, dataset, made, _beginning(experiment, made))


def _tokenizer(experiment: Experiment, cache: Path) -> Tokenizer | None:
    if experiment.tokenizer is None:
        return None
    text = experiment.data.text("train")
    return experiment.tokenizer.build(lambda: (document.text for document in text), cache, text.digest)


def _check_rows(experiment: Experiment, layout: Layout) -> None:
    rows, parts = experiment.data.batch_size, layout.parts(axes.BATCH)
    at_once = rows // experiment.update.accumulate
    check(
        at_once % parts == 0,
        f"data.batch_size is {rows} and update.accumulate {experiment.update.accumulate}: {at_once} rows at a time are "
        f"divided over {parts} devices by the strategy's mesh axes of the batch; make them a multiple of {parts}, or "
        "give those axes fewer devices",
    )


def experiment_programs(experiment: Experiment, layout: Layout) -> Programs:
    """The programs of `experiment` in a layout, which may be of devices that there are not."""
    return programs(
        Transformer(experiment.model, experiment.precision),
        experiment.objective,
        experiment.optimizer,
        experiment.update,
        layout,
        experiment.steps,
        experiment.seed,
    )


def _beginning(experiment: Experiment, made: Programs) -> Callable[[], TrainState]:
    """The state before the first update: fresh, or with weights that are there already."""
    start = experiment.start
    if start is None:
        return made.fresh
    there = read_config(start)
    if has_experts(experiment.model) and not has_experts(there):
        check_upcycles(there, experiment.model)
        return lambda: made.begin(_upcycled(experiment, start))
    found, wanted = (architecture(config) for config in (there, experiment.model))
    check(
        found == wanted,
        f"{start} holds another model than the experiment's: "
        f"{'; '.join(config.diff(wanted, found)[:4])}; model=read_config(folder) takes the one that is there",
    )
    return lambda: made.begin(load_hf(start, experiment.precision.params)[1])


def _upcycled(experiment: Experiment, start: str) -> Any:
    dense, parameters = load_hf(start, experiment.precision.params)
    model = Transformer(experiment.model, experiment.precision)
    return upcycled(dense.config, parameters, model, rng.key(experiment.seed, "upcycle"))
