"""Extractive question answering: the answer is a span of a text.

Legend: B batch, T length.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_one_of, shortened
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import record_fields
from llm_jax.objectives.labelled_text import LabelledBatch, LabelledTextObjective, Marks, inputs_of, marks
from llm_jax.objectives.predictor import Predictor
from llm_jax.objectives.record_fields import Unusable
from llm_jax.tokenizers.tokenizer import Tokenizer

SeveralAnswers = Literal["invalid", "first"]
"""What is done with a record with different answers. invalid: it is not used. first: the first answer is the target."""


@flax.struct.dataclass
class Spans:
    """Answers.

    Attributes:
      start_B, end_B: int32, indices in the sequence of the first and the last token.
      candidates_BT: bool, whether a token belongs to the context.
    """

    start_B: Any
    end_B: Any
    candidates_BT: Any


@configclass
class QuestionAnsweringConfig(LabelledTextObjective, Predictor):
    """The answer to a question is a span of the context (Devlin et al. 2019, arXiv:1810.04805, 4.2; SQuAD, Rajpurkar et
    al. 2016, arXiv:1606.05250).

    A sequence is <bos> question <sep> context <sep>. The loss is the mean of the cross-entropies of the first and the
    last token of the answer, both over the tokens of the context; in the paper they are over all tokens. The predicted
    span is that with the largest sum of scores whose end is not before its start.

    A token with a part of the answer belongs to the answer. Questions without an answer (SQuAD 2.0) are not used.
    """

    question: str = "question"
    """Field of a record with the question."""
    context: str = "context"
    """Field with the text that holds the answer."""
    answers: str = "answers"
    """Field with an object of `text` and `answer_start`, in characters of the context: one of each, or equally long
    lists."""
    several: SeveralAnswers = "invalid"
    """The held-out parts of SQuAD have the answers of several people: read them with 'first'."""

    head = "span"

    def __post_init__(self):
        check_one_of("objective.several", self.several, ("invalid", "first"))
        check(
            self.question != self.context,
            f"objective.question and objective.context are both {self.question!r}: they must be two fields of a record",
        )

    def texts(self, document: str) -> Iterable[str]:
        return record_fields.texts_of(document, (self.question, self.context))

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "QuestionAnsweringExamples":
        return QuestionAnsweringExamples(self, marks(model, tokenizer), sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> LabelledBatch:
        spans = Spans(rows["start"], rows["end"], rows["candidates"] != 0)
        return LabelledBatch(inputs_of(rows), spans, (rows["segment_ids"][:, 0] != 0).astype(np.float32))

    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        context = fields.get(self.context)
        first = context.split()[:1] if isinstance(context, str) else []
        start = context.index(first[0]) if isinstance(context, str) and first else 0
        return {**fields, self.answers: {"text": first, "answer_start": [start] * len(first)}}

    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        """The text of the best span, and the sum of the scores of its ends."""
        starts_T, ends_T = (np.where(row["candidates"] != 0, scores[:, index], -np.inf) for index in (0, 1))
        start, end = (int(index_B[0]) for index_B in best_spans(jnp.asarray(starts_T)[None], jnp.asarray(ends_T)[None]))
        text = tokenizer.decode(row["tokens"][start : end + 1].tolist()).strip()
        return {"answer": text, "score": float(starts_T[start] + ends_T[end])}

    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        spans, real_B = batch.labels, batch.weights != 0
        # A row of padding has no candidates; its softmax is over all tokens, since that over none is not a number.
        scored_BT = spans.candidates_BT | ~real_B[:, None]
        starts_BT, ends_BT = (jnp.where(scored_BT, logits[..., index], -jnp.inf) for index in (0, 1))
        nats_B = (_cross_entropy(starts_BT, spans.start_B) + _cross_entropy(ends_BT, spans.end_B)) / 2
        start_B, end_B = best_spans(starts_BT, ends_BT)
        exact_B = (start_B == spans.start_B) & (end_B == spans.end_B)
        return {"loss": Ratio.of(nats_B, batch.weights), "accuracy": Ratio.of(exact_B, batch.weights)}


def best_spans(starts_BT: jax.Array, ends_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last token, int32 [B] each, of the span with the largest sum of its scores; -inf excludes a token."""
    before_BT = jax.lax.cummax(starts_BT, axis=1)
    end_B = jnp.argmax(before_BT + ends_BT, axis=1)
    allowed_BT = jnp.arange(starts_BT.shape[1]) <= end_B[:, None]
    return jnp.argmax(jnp.where(allowed_BT, starts_BT, -jnp.inf), axis=1), end_B


def _cross_entropy(scores_BT: jax.Array, target_B: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores_BT), target_B[:, None], axis=1)[:, 0]


class QuestionAnsweringExamples(RecordExamples):
    """Rows of `tokens`, `types`, `candidates` and the values `start` and `end`."""

    parts = ("question", "context", "span")
    """`span` has the first and the last token of the answer, counted in the context."""
    values = (TokenField("start"), TokenField("end"))

    def __init__(self, config: QuestionAnsweringConfig, marks: Marks, length: int):
        self._config, self._marks = config, marks
        self.sequences = (RecordSequence(length, fields=(TokenField("types"), TokenField("candidates"))),)

    @property
    def identity(self) -> str:
        config = self._config
        # The length decides which answers a row can hold.
        fields = (config.question, config.context, config.answers, config.several)
        return repr(("question answering", *fields, self.sequences[0].length))

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        return [self._encoded(record, tokenizer) for record in records]

    def _encoded(self, record: StructuredRecord, tokenizer: Tokenizer) -> tuple[np.ndarray, ...] | str:
        config = self._config
        try:
            question, context = (record_fields.text(record, name) for name in (config.question, config.context))
            spans = _spans(record_fields.value(record, config.answers), context)
            if config.several == "invalid":
                _check_one(spans, context)
            read, (ids, starts) = tokenizer.encode(question), _with_offsets(tokenizer, context)
            span = tokens_of(starts, *spans[0])
            self._check_room(len(read), int(span[1]))
        except Unusable as reason:
            return str(reason)
        return np.array(read, np.int64), np.array(ids, np.int64), span

    def _check_room(self, question: int, last: int) -> None:
        """Checks that the answer remains where the context is truncated."""
        length = self.sequences[0].length
        room = length - 3 - question
        if last >= room:
            raise Unusable(
                f"the answer ends with token {last + 1} of the context, and a row of {length} tokens has room for "
                f"{max(room, 0)} beside the question: raise data.sequence_length"
            )

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts[:, :2].sum(axis=1, keepdims=True) + 3  # bos and two separators

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        tokens, types = self._marks.joined([parts["question"], parts["context"]])
        first = len(parts["question"]) + 2
        candidates = types.copy()
        candidates[-1] = 0  # the separator at the end
        start, end = first + parts["span"]
        return {"tokens": tokens, "types": types, "candidates": candidates, "start": start, "end": end}

    def truncated(self, parts: Row) -> Row:
        """The question and the beginning of the context."""
        limit = self.sequences[0].length - 3 - len(parts["question"])
        return parts | {"context": parts["context"][:limit]}


def tokens_of(starts: Sequence[int], begin: int, stop: int) -> np.ndarray:
    """The first and the last token with a part of the characters from `begin` up to `stop`, int64 [2], from the
    characters at which tokens start (`Tokenizer.encode_with_offsets`)."""
    places = np.asarray(starts)
    holding, last = (max(int(np.searchsorted(places, place, "right")) - 1, 0) for place in (begin, stop - 1))
    # Several tokens may be parts of the same character.
    first = np.searchsorted(places, places[holding], "left")
    return np.array([first, last], np.int64)


def _with_offsets(tokenizer: Tokenizer, context: str) -> tuple[list[int], list[int]]:
    try:
        return tokenizer.encode_with_offsets(context)
    except ValueError as error:
        raise Unusable(str(error)) from error


def _spans(answers: Any, context: str) -> list[tuple[int, int]]:
    """Characters (begin, stop) of each answer in the context, without white space at its ends."""
    if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= set(answers):
        raise Unusable(f"the answers are {shortened(answers)}, not an object with 'text' and 'answer_start'")
    texts, starts = (found if isinstance(found := answers[key], list) else [found] for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise Unusable(f"the answers have {len(texts)} texts and {len(starts)} starts")
    if not texts:
        raise Unusable("there is no answer")
    return [_span(text, start, context) for text, start in zip(texts, starts, strict=True)]


def _span(text: Any, start: Any, context: str) -> tuple[int, int]:
    if not isinstance(text, str) or not text.strip():
        raise Unusable(f"an answer is {text!r}, not a text with characters")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise Unusable(f"answer {text!r} starts at {start!r}, which is no place in the context")
    if context[start : start + len(text)] != text:
        there = shortened(context[start : start + len(text)])
        raise Unusable(f"answer {text!r} is not at character {start} of the context, where {there} stands")
    begin = start + len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())


def _check_one(spans: list[tuple[int, int]], context: str) -> None:
    """Checks that all answers are the same span."""
    first = spans[0]
    for other in spans[1:]:
        if other != first:
            overlap = max(first[0], other[0]) < min(first[1], other[1])
            answers = " and ".join(repr(context[begin:stop]) for begin, stop in (first, other))
            places = f"characters {first[0]} and {other[0]}"
            raise Unusable(
                f"answers {answers} at {places} {'overlap' if overlap else 'are different spans'}: keep one, or set "
                "objective.several to 'first'"
            )
