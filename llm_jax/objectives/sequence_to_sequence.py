"""Sequence-to-sequence learning: translation, summarisation, and every task from one text to another.

Legend: B batch, S length of the encoder's sequence, T length of the decoder's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llm_jax.core.checks import check, check_one_of, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import record_fields
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.pair_objective import PairObjective
from llm_jax.tokenizers.tokenizer import Tokenizer

Start = Literal["pad", "bos", "eos"]
"""Token that the decoder reads first: pad in T5 and Marian, eos in BART, bos elsewhere."""


@configclass
class SequenceToSequenceConfig(PairObjective):
    """The encoder reads the source of a record, and the decoder generates its target (Sutskever et al. 2014,
    arXiv:1409.3215; Vaswani et al. 2017, arXiv:1706.03762, 5).

    Both end with eos. Rows hold several records, each a segment of its own: a target attends to its own source only.
    """

    source: str = "source"
    """Field of a record with the text that the encoder reads."""
    target: str = "target"
    """Field of a record with the text that the decoder generates."""
    prefix: str = ""
    """Text before every source, such as T5's 'translate English to German: ' (Raffel et al. 2020, 2.4)."""
    source_length: int | None = None
    """S; None: data.sequence_length, which is T."""
    start: Start = "pad"

    def __post_init__(self):
        super().__post_init__()
        check_positive_if_given(source_length=self.source_length)
        check_one_of("start", self.start, ("pad", "bos", "eos"))
        check(
            self.source != self.target,
            f"objective.source and objective.target are both {self.source!r}: they must be two fields of a record",
        )

    def lengths(self, length: int) -> tuple[int, int]:
        return self.source_length or length, length

    def texts(self, document: str) -> Iterable[str]:
        return record_fields.texts_of(document, (self.source, self.target))

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "SequenceToSequenceExamples":
        start_id = self.decoder_start(tokenizer)
        eos_id = 0 if tokenizer is None else tokenizer.eos_id
        return SequenceToSequenceExamples(self, self.lengths(sequence_length), start_id, eos_id)

    def decoder_start(self, tokenizer: Tokenizer | None) -> int:
        """Id of `start`."""
        return 0 if tokenizer is None else getattr(tokenizer, f"{self.start}_id")

    def encoded_source(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Token ids of a source, as the encoder reads it."""
        return [*tokenizer.encode(self.prefix + text), tokenizer.eos_id]

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return super().batch({"targets": rows["target_tokens"], **rows})


class SequenceToSequenceExamples(RecordExamples):
    """Rows of `encoder_tokens`, `target_tokens` and `decoder_tokens`, the targets shifted by one token."""

    parts = ("source", "target")

    def __init__(self, config: SequenceToSequenceConfig, lengths: tuple[int, int], start_id: int, eos_id: int):
        self._config, self._start_id, self._eos_id = config, start_id, eos_id
        source, target = lengths
        self.sequences = (
            RecordSequence(source, "encoder_"),
            RecordSequence(target, "target_", (TokenField("decoder_tokens"),)),
        )

    @property
    def identity(self) -> str:
        config = self._config
        return repr(("sequence to sequence", config.source, config.target, config.prefix))

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        read = [self._read(record) for record in records]
        given = [one for one in read if not isinstance(one, str)]
        ids = iter(tokenizer.encode_batch([text for pair in given for text in pair]))
        return [one if isinstance(one, str) else (next(ids), next(ids)) for one in read]

    def _read(self, record: StructuredRecord) -> tuple[str, str] | str:
        config = self._config
        try:
            source = record_fields.text(record, config.source)
            return config.prefix + source, record_fields.text(record, config.target)
        except record_fields.Unusable as reason:
            return str(reason)

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts + 1  # eos

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        source, target = (np.append(parts[name], self._eos_id).astype(np.int32) for name in self.parts)
        read = np.concatenate([[self._start_id], target[:-1]]).astype(np.int32)
        return {"encoder_tokens": source, "target_tokens": target, "decoder_tokens": read}

    def truncated(self, parts: Row) -> Row:
        """The beginnings of both."""
        limits = [sequence.length - 1 for sequence in self.sequences]
        return {name: parts[name][:limit] for name, limit in zip(self.parts, limits, strict=True)}
