"""Loss and bits per byte of held-out data."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, means
from llm_jax.data.pipeline import EvaluationSet
from llm_jax.evals import compression
from llm_jax.evals.evaluation import EvaluatedRun, Evaluation, Evaluator, Results, RunEnd
from llm_jax.objectives.objective import AnyBatch
from llm_jax.train.state import EvaluationWeights


@configclass
class PerplexityConfig(Evaluation):
    """The objective's metrics on the validation part: `validation/loss` in nats per token and, for text,
    `validation/bits_per_byte`. A mixture has the metrics of each source, `validation/<source>/loss`, and checkpoints
    can also be compared by the weighted mean, `validation/loss`."""

    max_bytes: int | None = None
    """Size of the sample of the validation part that is evaluated during training; None: all of it."""
    test: bool = False
    """Whether to evaluate the whole test part after the last step."""
    compressors: bool = False
    """Whether to also record gzip, xz and a byte 5-gram of the training text as baselines on the test part."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.test or not self.compressors,
            "compressors is set and test is not: set test, which compressors requires",
        )

    def metrics(self, experiment: Any) -> tuple[str, ...]:
        check(
            experiment.objective.predicts_text or not self.compressors,
            f"compressors of PerplexityConfig is set, and objective {type(experiment.objective).__name__} does not "
            "define bits per byte: set compressors to False",
        )
        names = experiment.data.held_out.names
        return names if experiment.objective.predicts_text else _without_bits(names)

    def build(self, run: EvaluatedRun) -> Evaluator:
        sets = run.held_out("validation", self.max_bytes)
        return lambda weights, key: {found.name: _scored(run, found, weights) for found in sets}

    def compared(self, experiment: Any, found: Results) -> dict[str, float]:
        return experiment.data.held_out.figures(found)

    def finish(self, run: EvaluatedRun, end: RunEnd) -> None:
        """Evaluates the test part and, if `compressors` is set, its baselines."""
        for found in run.held_out("test") if self.test else ():
            if (f"eval/{found.name}", end.step) not in end.recorded:
                end.record(f"eval/{found.name}", end.step, **_scored(run, found, end.weights()))
        names = {f"baseline/{name}" for name in compression.BASELINES}
        if end.leads and self.compressors and not names <= {kind for kind, _ in end.recorded}:
            texts = [[doc.text.encode() for doc in run.experiment.data.text(part)] for part in ("train", "test")]
            for name, bits in compression.baselines(*texts).items():
                end.record(f"baseline/{name}", 0, bits_per_byte=bits)


def _scored(run: EvaluatedRun, found: EvaluationSet, weights: EvaluationWeights) -> dict[str, float]:
    text_bytes = found.text_bytes if run.experiment.objective.predicts_text else None
    return scores(functools.partial(run.programs.evaluate, weights), run.batches(found), text_bytes)


def _without_bits(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith("/bits_per_byte"))


def scores(
    function: Callable[[AnyBatch], Metrics], batches: Iterable[AnyBatch], bytes_of_text: int | None
) -> dict[str, float]:
    """Means over a whole set: 'loss' in nats per token, the count of 'targets' and, if the size of the text is known,
    'bits_per_byte'.

    Raises:
      ValueError: if there is no batch.
    """
    # Fetched batch by batch, because the host adds in float64, and because concurrent functions on simulated devices
    # can deadlock in a collective.
    parts = [jax.device_get(function(batch)) for batch in batches]
    check(len(parts) > 0, "the evaluation set has no batch: add documents, or remove it from the experiment")
    totals = jax.tree.map(lambda *sums: np.sum(sums, axis=0, dtype=np.float64), *parts)
    values = means(totals) | {"targets": float(totals["loss"].count)}
    if bytes_of_text:
        values["bits_per_byte"] = float(totals["loss"].total) / math.log(2) / bytes_of_text
    return values
