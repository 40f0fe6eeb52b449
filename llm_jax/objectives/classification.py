"""Classification of texts and of pairs of texts, and regression.

Legend: B batch, C classes.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import StructuredRecord
from llm_jax.models.config import ModelConfig
from llm_jax.models.heads import ClassHead
from llm_jax.objectives import record_fields
from llm_jax.objectives.labelled_text import (
    LabelledBatch,
    LabelledTextExamples,
    LabelledTextObjective,
    Marks,
    inputs_of,
    marks,
    texts_of,
)
from llm_jax.objectives.predictor import Predictor
from llm_jax.tokenizers.tokenizer import Tokenizer


@flax.struct.dataclass
class Confusion:
    """How often sequences of one class are predicted as another.

    Attributes:
      counts_CC: float32, by true class and predicted class.
    """

    counts_CC: jax.Array

    def compute(self, name: str) -> dict[str, float]:
        """`name`/f1 (the mean over classes; of two classes that of class 1) and `name`/matthews, the correlation of
        Matthews (1975) for any number of classes (Gorodkin 2004, eq. 8); 0 where they are not defined."""
        counts = np.asarray(self.counts_CC, np.float64)
        right, total = np.diag(counts), counts.sum()
        true, predicted = counts.sum(axis=1), counts.sum(axis=0)
        f1 = np.divide(2 * right, true + predicted, out=np.zeros_like(right), where=true + predicted > 0)
        scale = math.sqrt((total**2 - (true**2).sum()) * (total**2 - (predicted**2).sum()))
        return {
            f"{name}/f1": float(f1[1] if len(f1) == 2 else f1.mean()),
            f"{name}/matthews": float((right.sum() * total - true @ predicted) / scale) if scale else 0.0,
        }


@configclass
class ClassificationConfig(LabelledTextObjective, Predictor):
    """Cross-entropy of the class of a text, or of a pair of texts (Devlin et al. 2019, arXiv:1810.04805, 4.1)."""

    text: str = "text"
    """Field of a record with the text."""
    pair: str | None = None
    """Field with a second text, such as a hypothesis; None: there is none."""
    label: str = "label"
    """Field with the class: its number, or its name."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers; empty: labels are numbers."""

    head = "sequence"

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or whose head has another number of classes.
        """
        super().check(model, sequence_length)
        head = model.stacks[-1].head
        if isinstance(head, ClassHead):
            check(head.classes > 1, "model.head.classes is 1: RegressionConfig trains a head with one output")
            check(
                len(self.classes) in (0, head.classes),
                f"objective.classes has {len(self.classes)} names and model.head.classes is {head.classes}: they must "
                "agree",
            )

    def texts(self, document: str) -> Iterable[str]:
        return texts_of(document, self.text, self.pair)

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "ClassificationExamples":
        head = model.stacks[-1].head
        count = head.classes if isinstance(head, ClassHead) else 0
        return ClassificationExamples(self, count, _fields(self), marks(model, tokenizer), sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> LabelledBatch:
        return LabelledBatch(inputs_of(rows), rows["labels"], (rows["segment_ids"][:, 0] != 0).astype(np.float32))

    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {**fields, self.label: 0}

    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        """The likeliest class and the probabilities of all."""
        number = int(np.argmax(scores[0]))
        probabilities = np.exp(scores[0] - scipy.special.logsumexp(scores[0]))
        return {"label": self.classes[number] if self.classes else number, "probabilities": probabilities.tolist()}

    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        return class_losses(logits[:, 0], batch)


def class_losses(logits_BC: jax.Array, batch: LabelledBatch) -> Metrics:
    """Cross-entropy of the class of each sequence as 'loss', 'accuracy', and `Confusion`."""
    log_p_BC = jax.nn.log_softmax(logits_BC)
    nats_B = -jnp.take_along_axis(log_p_BC, batch.labels[:, None], axis=1)[:, 0]
    predicted_B = jnp.argmax(log_p_BC, axis=1)
    true_BC, predicted_BC = (jax.nn.one_hot(classes_B, log_p_BC.shape[1]) for classes_B in (batch.labels, predicted_B))
    counts_CC = jnp.einsum("BC,BD,B->CD", true_BC, predicted_BC, batch.weights)
    accuracy = Ratio.of(predicted_B == batch.labels, batch.weights)
    return {"loss": Ratio.of(nats_B, batch.weights), "accuracy": accuracy, "classes": Confusion(counts_CC)}


class ClassificationExamples(LabelledTextExamples):
    """Examples whose label is a class."""

    def __init__(self, config: ClassificationConfig, count: int, fields: tuple[str, ...], marks: Marks, length: int):
        super().__init__(fields, marks, length, TokenField("labels"))
        self._config, self._count = config, count

    @property
    def identity(self) -> str:
        config = self._config
        return repr(("classification", self._fields, config.label, config.classes or self._count))

    def label(self, record: StructuredRecord) -> int:
        found = record_fields.value(record, self._config.label)
        return record_fields.class_number(found, self._config.classes, self._count)

    def value(self, label: int) -> Any:
        return label


@flax.struct.dataclass
class Correlation:
    """Sums from which Pearson's correlation of two variables is computed, float32 scalars. Digits are lost where a
    variable varies little beside its mean.

    Attributes:
      count, x, y, xx, yy, xy: sums of the weights, of both variables and of their products.
    """

    count: jax.Array
    x: jax.Array
    y: jax.Array
    xx: jax.Array
    yy: jax.Array
    xy: jax.Array

    def compute(self, name: str) -> dict[str, float]:
        """The correlation; 0 where one variable is constant."""
        n, x, y, xx, yy, xy = (float(value) for value in (self.count, self.x, self.y, self.xx, self.yy, self.xy))
        spread = (n * xx - x * x) * (n * yy - y * y)
        return {name: (n * xy - x * y) / math.sqrt(spread) if spread > 0 else 0.0}


@configclass
class RegressionConfig(LabelledTextObjective, Predictor):
    """Squared error of a number, such as the similarity of two texts (Devlin et al. 2019, 4.1: STS-B)."""

    text: str = "text"
    """Field of a record with the text."""
    pair: str | None = None
    """Field with a second text; None: there is none."""
    label: str = "label"
    """Field with the number."""

    head = "sequence"

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or whose head has more than one output.
        """
        super().check(model, sequence_length)
        head = model.stacks[-1].head
        if isinstance(head, ClassHead):
            check(
                head.classes == 1,
                f"model.head.classes is {head.classes}: regression has one output; set it to 1, or use "
                "ClassificationConfig",
            )

    def texts(self, document: str) -> Iterable[str]:
        return texts_of(document, self.text, self.pair)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "RegressionExamples":
        return RegressionExamples(self, _fields(self), marks(model, tokenizer), sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> LabelledBatch:
        return LabelledBatch(inputs_of(rows), rows["labels"], (rows["segment_ids"][:, 0] != 0).astype(np.float32))

    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {**fields, self.label: 0.0}

    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        return {"score": float(scores[0, 0])}

    def losses(self, logits: jax.Array, batch: LabelledBatch) -> Metrics:
        x_B, y_B, w_B = logits[:, 0, 0], batch.labels, batch.weights
        sums = (jnp.sum(w_B * product_B) for product_B in (1, x_B, y_B, x_B * x_B, y_B * y_B, x_B * y_B))
        return {"loss": Ratio.of(jnp.square(x_B - y_B), w_B), "correlation": Correlation(*sums)}


class RegressionExamples(LabelledTextExamples):
    """Examples whose label is a number, cached as the bits of a float32."""

    def __init__(self, config: RegressionConfig, fields: tuple[str, ...], marks: Marks, length: int):
        super().__init__(fields, marks, length, TokenField("labels", "float32"))
        self._config = config

    @property
    def identity(self) -> str:
        return repr(("regression", self._fields, self._config.label))

    def label(self, record: StructuredRecord) -> int:
        found = record_fields.value(record, self._config.label)
        try:
            # CSV files hold numbers as text.
            number = np.float32(float(found) if isinstance(found, str) else found)
        except (TypeError, ValueError) as error:
            raise record_fields.Unusable(f"label {found!r} is no number") from error
        if found is None or isinstance(found, bool):
            raise record_fields.Unusable(f"label {found!r} is no number")
        if not np.isfinite(number):
            raise record_fields.Unusable(f"label {found!r} is not finite")
        return int(number.view(np.uint32))

    def value(self, label: int) -> Any:
        return np.uint32(label).view(np.float32)


def _fields(config: ClassificationConfig | RegressionConfig) -> tuple[str, ...]:
    return (config.text,) if config.pair is None else (config.text, config.pair)
