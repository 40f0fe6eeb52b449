"""Evaluations as configs: what is measured of a model while it trains, and by which checkpoints are compared."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.pipeline import Dataset, EvaluationSet
from llm_jax.data.row_source import Row
from llm_jax.data.splits import Part
from llm_jax.objectives.objective import AnyBatch
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.train.programs import Programs

Results = Mapping[str, Mapping[str, float]]
"""Values of metrics by their names, of each set by its name. Scalars of numpy and jax count as floats."""

Evaluator = Callable[[Any, jax.Array], Results]
"""(params, key) -> results. All processes call it after the same steps, and must get equal results. `params` are the
weights meant for use, sharded as in training; `key` is a function of the experiment's seed, the step and the type."""


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """What an evaluation may use of the run whose model it measures."""

    experiment: Any
    """The Experiment."""
    programs: Programs
    """`programs.model` has `apply`, `programs.layout` the mesh; `programs.evaluate(params, batch)` gives the metrics of
    the objective as sums."""
    tokenizer: Tokenizer | None
    dataset: Dataset
    share: tuple[int, int]
    """(process, processes): which part of every batch this process reads."""
    place: Callable[[Row], AnyBatch]
    """From stacked rows of this process to a batch over all devices."""

    def held_out(self, part: Part = "validation", max_bytes: int | None = None) -> tuple[EvaluationSet, ...]:
        """The sets of a held-out part: one, or one for each source of a mixture; of each a sample of at most
        `max_bytes` of text, or all of it.

        Raises:
          ValueError: if the data have no such part.
        """
        return self.dataset.evaluation(part, *self.share, max_bytes)

    def batches(self, found: EvaluationSet) -> Iterator[AnyBatch]:
        """The batches of a set over all devices."""
        return map(self.place, found.batches)


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """What is known of a run after its last step."""

    step: int
    params: Callable[[], Any]
    """Gives the weights meant for use, as an `Evaluator` takes them."""
    recorded: frozenset[tuple[str, int]]
    """(kind, step) of every record in metrics.jsonl."""
    record: Callable[..., None]
    """(kind, step, **values) adds a record to metrics.jsonl and the trackers. Only the first process writes it."""
    leads: bool
    """Whether this is the first process."""


@configclass(kw_only=True)
class Evaluation(abc.ABC):
    """What is measured of a model while it trains. Derive a configclass from it to add an evaluation of your own.

    It runs every `every` steps and after the last, before a checkpoint of that step is saved. Each set that it returns
    is recorded as `eval/<set>`. Evaluations decide nothing of what is trained: a run may be resumed with others.
    """

    every: int = 500
    """Steps between two evaluations; one is made after the last step as well."""

    def __post_init__(self):
        check_positive(every=self.every)

    @abc.abstractmethod
    def metrics(self, experiment: Any) -> tuple[str, ...]:
        """Names `<set>/<metric>` of the metrics that checkpoints can be compared by (`checkpoint.best_metric`): lower
        values are better. It may return further metrics, which are recorded alone."""

    @abc.abstractmethod
    def build(self, run: EvaluatedRun) -> Evaluator:
        """The function that measures; it is built once for each start of a run, before the first step.

        Raises:
          ValueError: if the run lacks what it needs, such as a held-out part.
        """

    def compared(self, experiment: Any, found: Results) -> dict[str, float]:
        """The values of `metrics` out of what the evaluator has returned; checkpoints keep them.

        Raises:
          ValueError: if the evaluator has left one out.
        """
        flat = {f"{name}/{metric}": value for name, values in found.items() for metric, value in values.items()}
        names = self.metrics(experiment)
        missing = [name for name in names if name not in flat]
        check(
            not missing,
            f"{type(self).__name__} declares the metrics {', '.join(missing)}, and its evaluator returned "
            f"{', '.join(flat) or 'none'}: return them, or leave them out of metrics()",
        )
        return {name: flat[name] for name in names}

    def finish(self, run: EvaluatedRun, end: RunEnd) -> None:
        """Measures and records what is measured once, after the last step. It is called again whenever the command of a
        complete run is repeated, and leaves alone what is recorded already."""
