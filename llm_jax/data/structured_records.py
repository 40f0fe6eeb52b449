"""Structured records, such as pairs of texts, texts with labels, and conversations: their parts and rows."""

import functools
from typing import Literal

import numpy as np

from llm_jax.core.checks import check, check_one_of, given
from llm_jax.core.configclass import configclass
from llm_jax.data.cache import tokenized
from llm_jax.data.read_source import Duplicates, ReadSource
from llm_jax.data.record_documents import InvalidRecord, RecordDocuments, RecordEncoding
from llm_jax.data.record_rows import RecordRows
from llm_jax.data.row_source import EvaluationRows, RowContext, Rows, RowSource
from llm_jax.data.sources import Reader
from llm_jax.data.splits import ContentSplit, Limited, Part, Split

TooLong = Literal["error", "skip", "truncate"]
"""Policy for a record that does not fit into a row. error: raise an error with its number and length. skip: leave it
out. truncate: shorten it as the objective says. Records that are skipped or truncated are counted in the run's card."""


@configclass
class RecordsConfig(ReadSource):
    """Records that a reader yields as JSON objects (`field=None`). The objective says which fields it reads."""

    source: Reader
    split: Split = ContentSplit()
    pack: bool = True
    """Whether rows hold as many records as fit, if the objective allows it. False: one record each."""
    shuffle: bool = True
    """False: records are in the order of the source in every epoch."""
    too_long: TooLong = "error"
    invalid: InvalidRecord = "error"
    duplicates: Duplicates = "keep"

    def __post_init__(self) -> None:
        check_one_of("too_long", self.too_long, ("error", "skip", "truncate"))
        check_one_of("invalid", self.invalid, ("error", "skip"))
        check_one_of("duplicates", self.duplicates, ("keep", "skip"))

    def build(self, context: RowContext) -> "StructuredRecords":
        return StructuredRecords(self, context)


class StructuredRecords(RowSource):
    """Rows from the parts of a set of records. A part is tokenised when it is first needed."""

    def __init__(self, config: RecordsConfig, context: RowContext):
        """Raises ValueError if there is no tokenizer, or the objective reads no records."""
        self._tokenizer = given(
            context.tokenizer, f"{config.source} is text: the experiment needs a tokenizer to cut it"
        )
        self._examples = context.record_examples
        self._config, self._context = config, context
        self._source = config.source.build()
        self._documents = functools.lru_cache(maxsize=None)(self._read)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def train(self) -> Rows:
        """Raises ValueError if there are fewer rows than one batch has."""
        context = self._context
        rows = self._rows(self._documents("train", None), context.seed if self._config.shuffle else None)
        check(
            rows.rows_per_epoch >= context.batch_size,
            f"the training part has {rows.rows_per_epoch} rows, and data.batch_size is {context.batch_size}: add "
            "records, lower batch_size, or set data.source.pack to False",
        )
        return rows

    def evaluation(self, part: Part, max_bytes: int | None) -> dict[str, EvaluationRows]:
        rows = self._rows(self._documents(part, max_bytes), None)
        return {"": EvaluationRows(rows, rows.rows_per_epoch, text_bytes=None, optimal_loss=None)}

    def manifest(self) -> dict:
        found = {}
        for part in self._config.split.parts():
            text, documents = self._config.text_of(self._source, part), self._documents(part, None)
            found[part] = {
                "text_digest": text.digest,
                "invalid_utf8": len(text.invalid),
                **self._counts(documents),
                "tokens_digest": documents.digest,
            }
        return found

    def record_counts(self) -> dict[str, int]:
        parts = {part: self._counts(self._documents(part, None)) for part in self._config.split.parts()}
        return {f"{part}/{name}": count for part, counts in parts.items() for name, count in counts.items()}

    def empty_texts(self) -> int:
        return self._source.empty

    def _counts(self, documents: RecordDocuments) -> dict[str, int]:
        return {
            "records": len(documents),
            "invalid": len(documents) - len(documents.usable),
            "skipped" if self._config.too_long == "skip" else "truncated": len(self._too_long(documents)),
        }

    def _read(self, part: Part, max_bytes: int | None) -> RecordDocuments:
        text = self._config.text_of(self._source, part)
        text = text if max_bytes is None else Limited(text, max_bytes, whole=True)
        encoding = RecordEncoding(self._tokenizer, self._examples, self._config.invalid)
        return RecordDocuments(tokenized(text, encoding, self._context.cache), self._examples)

    def _rows(self, documents: RecordDocuments, seed: int | None) -> RecordRows:
        config, too_long = self._config, self._too_long(documents)
        if config.too_long == "error" and len(too_long):
            lengths = self._examples.lengths(documents.lengths[too_long[:1]])[0]
            limits = [sequence.length for sequence in self._examples.sequences]
            raise ValueError(
                f"{len(too_long)} of {len(documents)} records do not fit into a row; record {too_long[0]} of the part "
                f"has {' and '.join(map(str, lengths))} tokens and a row {' and '.join(map(str, limits))}: raise "
                "data.sequence_length or the lengths of the objective, or set data.source.too_long to 'skip' or "
                "'truncate'"
            )
        chosen = np.setdiff1d(documents.usable, too_long) if config.too_long == "skip" else documents.usable
        check(len(chosen) > 0, f"no record of {self._source} can be used: all are invalid or too long")
        packed = config.pack and not self._examples.values
        return RecordRows(documents, chosen, self._examples, packed, seed)

    def _too_long(self, documents: RecordDocuments) -> np.ndarray:
        """Indices of the usable records that do not fit into a row."""
        limits = np.array([sequence.length for sequence in self._examples.sequences])
        lengths = self._examples.lengths(documents.lengths[documents.usable])
        return documents.usable[(lengths > limits).any(axis=1)]
