"""Predictions for structured records: labels, tags, spans, numbers, embeddings."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from llm_jax.core.checks import check_positive
from llm_jax.data.examples import Row
from llm_jax.data.record_examples import RecordExamples, StructuredRecord
from llm_jax.data.record_rows import row_of
from llm_jax.models.build import Model
from llm_jax.objectives.objective import Objective
from llm_jax.objectives.predictor import Predictor
from llm_jax.tokenizers.tokenizer import Tokenizer


def predictions(
    objective: Objective,
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    records: Iterable[StructuredRecord],
    sequence_length: int,
    batch_size: int = 32,
) -> Iterator[dict[str, Any]]:
    """Yields a prediction for each record, in order; {'error': reason} for one of which no example can be made. A
    record that does not fit into a row is shortened and has 'truncated': True.

    Args:
      objective: the one that the model was trained by, with rows of `sequence_length` tokens.

    Raises:
      ValueError: for an objective that does not predict parts of records.
    """
    check_positive(batch_size=batch_size)
    examples = objective.examples(model.config, tokenizer, sequence_length)
    if not isinstance(objective, Predictor) or not isinstance(examples, RecordExamples):
        raise ValueError(
            f"objective {type(objective).__name__} does not classify, tag, mark or embed records: `llm-jax generate` "
            "writes text with a decoder or an encoder-decoder, and fills the masks of an encoder"
        )
    scores = jax.jit(lambda params, batch: objective.scores(model, params, batch))
    remaining = iter(records)
    while chunk := list(itertools.islice(remaining, batch_size)):
        answered = [StructuredRecord(record.name, objective.answered(record.fields)) for record in chunk]
        made = [_row(examples, parts) for parts in examples.encode(answered, tokenizer)]
        rows = [row for row, _ in made if row is not None]
        # All batches have the same shape, so that one program serves them.
        rows += [examples.row(examples.padding(0), np.random.default_rng(0))] * (batch_size - len(rows))
        batch = objective.batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        found = _unstacked(jax.device_get(scores(params, batch)), batch_size)
        for row, note in made:
            yield note if row is None else objective.prediction(next(found), row, tokenizer) | note


def _row(examples: RecordExamples, parts: Any) -> tuple[Row | None, dict[str, Any]]:
    """The row of a record, and what is to be said of it."""
    if isinstance(parts, str):
        return None, {"error": parts}
    named, note = dict(zip(examples.parts, map(np.asarray, parts), strict=True)), {}
    limits = [sequence.length for sequence in examples.sequences]
    if (examples.lengths(np.array([[len(part) for part in parts]])) > limits).any():
        named, note = examples.truncated(named), {"truncated": True}
    generator = np.random.default_rng(0)
    return examples.row(row_of(examples, [examples.document(named, generator)]), generator), note


def _unstacked(tree: Any, count: int) -> Iterator[Any]:
    return (jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count))
