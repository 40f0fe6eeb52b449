"""Rows and batches that an objective makes of records, without files and caches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.data.record_examples import RecordExamples, StructuredRecord
from llm_jax.data.record_rows import RecordRows
from llm_jax.models.config import ModelConfig
from llm_jax.objectives.objective import Objective
from llm_jax.tokenizers import Tokenizer

Records = Sequence[Mapping[str, Any]]


class _Encoded:
    """Records as `encode` made them."""

    def __init__(self, examples: RecordExamples, parts: list):
        self._names, self._parts = examples.parts, parts
        self.lengths = np.array([[len(part) for part in one] for one in parts])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return dict(zip(self._names, map(np.asarray, self._parts[index]), strict=True))


def encoded(objective: Objective, model: ModelConfig, tokenizer: Tokenizer, length: int, records: Records) -> list:
    """The parts of each record, or the reason why there are none."""
    examples = objective.examples(model, tokenizer, length)
    return examples.encode([StructuredRecord(str(i), record) for i, record in enumerate(records)], tokenizer)


def reasons(objective: Objective, model: ModelConfig, tokenizer: Tokenizer, length: int, *records: Mapping) -> list:
    """Why the records are not used; of one that is used, None."""
    found = encoded(objective, model, tokenizer, length, records)
    return [one if isinstance(one, str) else None for one in found]


def rows_of(
    objective: Objective, model: ModelConfig, tokenizer: Tokenizer, length: int, records: Records, packed: bool
) -> list[dict[str, np.ndarray]]:
    """The rows of records, all of which must be usable."""
    parts = encoded(objective, model, tokenizer, length, records)
    assert not [one for one in parts if isinstance(one, str)], parts
    examples = objective.examples(model, tokenizer, length)
    packed = packed and not examples.values  # as in StructuredRecords
    rows = RecordRows(_Encoded(examples, parts), np.arange(len(parts)), examples, packed, None)
    return [rows[index] for index in range(rows.rows_per_epoch)]


def batch_of(
    objective: Objective, model: ModelConfig, tokenizer: Tokenizer, length: int, records: Records, packed: bool
) -> Any:
    """One batch of all rows of the records."""
    return stacked(objective, rows_of(objective, model, tokenizer, length, records, packed))


def stacked(objective: Objective, rows: list[dict[str, np.ndarray]]) -> Any:
    """The batch of rows."""
    return objective.batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})
