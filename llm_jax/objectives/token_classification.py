"""Classification of the words of a text, such as the recognition of names.

Legend: B batch, T length, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.models.config import ModelConfig
from llm_jax.models.heads import ClassHead
from llm_jax.objectives import record_fields
from llm_jax.objectives.labelled_text import LabelledBatch, LabelledTextObjective, Marks, inputs_of, marks
from llm_jax.objectives.predictor import Predictor
from llm_jax.tokenizers.boundaries import word_separator
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class TokenClassificationConfig(LabelledTextObjective, Predictor):
    """Cross-entropy of the tag of each word (Devlin et al. 2019, arXiv:1810.04805, 5.3; CoNLL-2003, Tjong Kim Sang and
    De Meulder 2003).

    Each word is tokenised by itself, with a space before it unless it is the first or the tokenizer separates words
    that are encoded by themselves (`word_separator`). The first token of a word has its tag; the other tokens have no
    loss. Rows hold several records, each a segment of its own.
    """

    tokens: str = "tokens"
    """Field of a record with the words, a list of texts."""
    tags: str = "tags"
    """Field with their classes, a list of numbers or names."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers; empty: tags are numbers."""

    head = "token"

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or whose head has another number of classes.
        """
        super().check(model, sequence_length)
        count = _classes(model)
        check(count > 1, "model.head.classes is 1: tags need two classes at least; set it to their number")
        check(
            len(self.classes) in (0, count),
            f"objective.classes has {len(self.classes)} names and model.head.classes is {count}: they must agree",
        )

    def texts(self, document: str) -> Iterable[str]:
        yield from (" ".join(words) for words in record_fields.lists_of(document, self.tokens))

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "TokenClassificationExamples":
        return TokenClassificationExamples(self, _classes(model), marks(model, tokenizer), sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> LabelledBatch:
        return LabelledBatch(inputs_of(rows), rows["labels"], rows["loss_weights"])

    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        words = fields.get(self.tokens)
        return {**fields, self.tags: [0] * len(words) if isinstance(words, list) else 0}

    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        """The likeliest class of each word; of a record that is shortened, of its first words."""
        numbers = np.argmax(scores[row["loss_weights"] > 0], axis=1).tolist()
        return {"tags": [self.classes[number] if self.classes else number for number in numbers]}

    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        log_p_BTC = jax.nn.log_softmax(logits)
        nats_BT = -jnp.take_along_axis(log_p_BTC, batch.labels[..., None], axis=2)[..., 0]
        right_BT = jnp.argmax(log_p_BTC, axis=2) == batch.labels
        return {"loss": Ratio.of(nats_BT, batch.weights), "accuracy": Ratio.of(right_BT, batch.weights)}


class TokenClassificationExamples(RecordExamples):
    """Rows of `tokens`, `types`, `labels` and `loss_weights`."""

    parts = ("tokens", "labels")
    """`labels` has one integer for each token: one more than the tag of the word that begins there, or 0."""

    def __init__(self, config: TokenClassificationConfig, count: int, marks: Marks, length: int):
        self._config, self._count, self._marks = config, count, marks
        fields = (TokenField("types"), TokenField("labels"), TokenField("loss_weights", "float32"))
        self.sequences = (RecordSequence(length, fields=fields),)

    @property
    def identity(self) -> str:
        config = self._config
        return repr(("token classification", config.tokens, config.tags, config.classes or self._count))

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        separator = word_separator(tokenizer)
        read = [self._read(record, separator) for record in records]
        ids = iter(tokenizer.encode_batch([word for one in read if not isinstance(one, str) for word in one[0]]))
        return [one if isinstance(one, str) else _joined([next(ids) for _ in one[0]], one[1]) for one in read]

    def _read(self, record: StructuredRecord, separator: str) -> tuple[list[str], list[int]] | str:
        """The words as they are tokenised, and their tags."""
        config = self._config
        try:
            words = record_fields.items(record, config.tokens)
            tags = record_fields.items(record, config.tags)
            if len(words) != len(tags):
                raise record_fields.Unusable(
                    f"field {config.tokens!r} has {len(words)} words and field {config.tags!r} {len(tags)} tags"
                )
            for number, word in enumerate(words):
                if not isinstance(word, str) or not word.strip():
                    raise record_fields.Unusable(f"word {number} is {word!r}, not a text with characters")
            numbers = [record_fields.class_number(tag, config.classes, self._count) for tag in tags]
        except record_fields.Unusable as reason:
            return str(reason)
        return [words[0], *(separator + word for word in words[1:])], numbers

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts[:, :1] + 2  # bos and the separator

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        tokens, types = self._marks.joined([parts["tokens"]])
        marked = np.concatenate([[0], parts["labels"], [0]])
        weights = (marked > 0).astype(np.float32)
        return {
            "tokens": tokens,
            "types": types,
            "labels": np.maximum(marked - 1, 0).astype(np.int32),
            "loss_weights": weights,
        }

    def truncated(self, parts: Row) -> Row:
        """The first tokens."""
        limit = self.sequences[0].length - 2
        return {name: array[:limit] for name, array in parts.items()}


def _joined(words: list[np.ndarray], tags: list[int]) -> tuple[np.ndarray, ...] | str:
    """Tokens of all words, and `labels`."""
    lengths = np.array([len(word) for word in words])
    if not lengths.all():
        return f"word {int(np.argmin(lengths))} has no tokens"
    labels = np.zeros(lengths.sum(), np.int64)
    labels[np.cumsum(lengths) - lengths] = np.array(tags) + 1
    return np.concatenate(words), labels


def _classes(model: ModelConfig) -> int:
    head = model.stacks[-1].head
    return head.classes if isinstance(head, ClassHead) else 0
