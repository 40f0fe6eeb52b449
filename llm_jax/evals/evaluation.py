"""Configs of evaluations, which compute metrics of a model during training, by which checkpoints are compared."""

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
from llm_jax.train.state import EvaluationWeights

Results = Mapping[str, Mapping[str, float]]
"""Metric values by name, for each evaluation set by name. Scalars of numpy and jax are allowed as floats."""

Evaluator = Callable[[EvaluationWeights, jax.Array], Results]
"""(weights, key) -> results. All processes call it after the same steps, and it must return equal results in all.
`weights` are those of `Programs.weights`, sharded as in training. `key` is a function of the
experiment's seed, the step and the type of the evaluation."""


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """The parts of a run that its evaluations can use."""

    experiment: Any
    """The Experiment."""
    programs: Programs
    """`programs.model` has `apply`, `programs.layout` the mesh. `programs.evaluate(weights, batch)` returns the metrics
    of the objective as sums."""
    tokenizer: Tokenizer | None
    dataset: Dataset
    share: tuple[int, int]
    """(process, processes): the part of every batch that this process reads."""
    place: Callable[[Row], AnyBatch]
    """Converts stacked rows of this process to a batch over all devices."""

    def held_out(self, part: Part = "validation", max_bytes: int | None = None) -> tuple[EvaluationSet, ...]:
        """The evaluation sets of a held-out part: one, or one for each source of a mixture. With `max_bytes`, each is a
        sample of at most that many bytes of text.

        Raises:
          ValueError: if the data has no such part.
        """
        return self.dataset.evaluation(part, *self.share, max_bytes)

    def batches(self, found: EvaluationSet) -> Iterator[AnyBatch]:
        """The batches of a set over all devices."""
        return map(self.place, found.batches)


@dataclasses.dataclass(frozen=True)
class RunEnd:
    """The state of a run after its last step."""

    step: int
    weights: Callable[[], EvaluationWeights]
    """Returns the evaluation weights, as an `Evaluator` receives them."""
    recorded: frozenset[tuple[str, int]]
    """(kind, step) of every record in metrics.jsonl."""
    record: Callable[..., None]
    """(kind, step, **values) adds a record to metrics.jsonl and the trackers. Only the first process writes it."""
    leads: bool
    """Whether this is the first process."""


@configclass(kw_only=True)
class Evaluation(abc.ABC):
    """Config of an evaluation during training. Derive a configclass from it to add your own evaluation.

    It runs every `every` steps and after the last step, before a checkpoint of that step is saved. Each set in its
    results is recorded as `eval/<set>`. Evaluations do not affect training, so a run may be resumed with others.
    """

    every: int = 500
    """Steps between two evaluations. The last step is evaluated as well."""

    def __post_init__(self):
        check_positive(every=self.every)

    @abc.abstractmethod
    def metrics(self, experiment: Any) -> tuple[str, ...]:
        """Names `<set>/<metric>` of the metrics by which checkpoints can be compared (`checkpoint.best_metric`). Lower
        must be better. The evaluator may return further metrics, which are only recorded."""

    @abc.abstractmethod
    def build(self, run: EvaluatedRun) -> Evaluator:
        """The evaluator. It is built once for each start of a run, before the first step.

        Raises:
          ValueError: if the run lacks something that it needs, such as a held-out part.
        """

    def compared(self, experiment: Any, found: Results) -> dict[str, float]:
        """The values of `metrics` from the results of the evaluator. Checkpoints store them.

        Raises:
          ValueError: if one is missing in the results.
        """
        flat = {f"{name}/{metric}": value for name, values in found.items() for metric, value in values.items()}
        names = self.metrics(experiment)
        missing = [name for name in names if name not in flat]
        check(
            not missing,
            f"{type(self).__name__} declares the metrics {', '.join(missing)}, and its evaluator returned "
            f"{', '.join(flat) or 'none'}: return them, or remove them from metrics()",
        )
        return {name: flat[name] for name in names}

    def finish(self, run: EvaluatedRun, end: RunEnd) -> None:
        """Evaluates and records what is needed only once, after the last step. It is called again whenever the command
        of a complete run is repeated, and must skip what is already recorded."""
