"""Contrastive learning of embeddings of texts.

Legend: B batch, V texts of a row, T length, D model width, N candidates.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.data.examples import Row, TokenField
from llm_jax.data.record_examples import RecordExamples, RecordSequence, StructuredRecord
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models import count
from llm_jax.models.build import applied
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.dropout import rates_of
from llm_jax.models.heads import ClassHead, HeadConfig, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import Output
from llm_jax.objectives import record_fields, special_tokens
from llm_jax.objectives.labelled_text import Marks, marks
from llm_jax.objectives.losses import balance
from llm_jax.objectives.objective import NO_MODELS, Models, Needs, Objective
from llm_jax.objectives.predictor import Predictor
from llm_jax.tokenizers.tokenizer import Tokenizer

Pooling = Literal["first", "mean"]
"""The embedding of a text from its hidden states: that of the first token, or the mean over all tokens."""
Negatives = Literal["batch", "microbatch"]
"""Where the negatives of a text are from: the whole batch, or the rows that one call of the loss sees."""


@flax.struct.dataclass
class ContrastiveBatch:
    """Rows of one to three texts.

    Attributes:
      texts: of each row a text, then its pair, then a hard negative, each [B, T].
      weights_B: float32; 0 for a row of padding, which is no negative either.
    """

    texts: tuple[Inputs, ...]
    weights_B: Any


@configclass
class ContrastiveConfig(Objective, Predictor):
    """InfoNCE with the other texts of the batch as negatives (SimCSE, Gao et al. 2021, arXiv:2104.08821).

    Without a pair the positive of a text is the text itself with other dropout (3, eq. 4), with one it is the pair; the
    candidates are then all pairs and all hard negatives of the batch (4, eq. 5). The scores are cosine similarities
    divided by the temperature, in float32. The paper's layer between pooling and loss is left out.

    Negatives come from every row of the batch, on whatever device. The loss is thus another one for another
    data.batch_size, and that of the last, smaller batch of an evaluation is lower. Evaluations have no dropout: without
    a pair their loss measures only how far apart the texts of a batch are.
    """

    needs = Needs("bidirectional", (HeadConfig, TiedHead, ClassHead, type(None)))
    predicts_text = False

    text: str = "text"
    """Field of a record with the text."""
    pair: str | None = None
    """Field with a text of the same meaning; None: the text itself."""
    negative: str | None = None
    """Field with a text that resembles it and has another meaning, such as a contradiction; None: there is none."""
    temperature: float = 0.05
    pooling: Pooling = "first"
    negatives: Negatives = "batch"
    """'batch': an experiment refuses to divide the batch by accumulation or `jax.pmap`."""

    def __post_init__(self):
        check_positive(temperature=self.temperature)
        check_one_of("objective.pooling", self.pooling, ("first", "mean"))
        check_one_of("objective.negatives", self.negatives, ("batch", "microbatch"))
        check(
            self.negative is None or self.pair is not None,
            f"objective.negative is {self.negative!r} and objective.pair is None: hard negatives require pairs",
        )
        check(
            len(set(self.fields)) == len(self.fields),
            f"text, pair and negative of the objective are {', '.join(self.fields)}: they must be different fields",
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record that are read."""
        return tuple(field for field in (self.text, self.pair, self.negative) if field is not None)

    @property
    def compares_rows(self) -> bool:
        return self.negatives == "batch"

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`, or without dropout where a text is its own pair.
        """
        super().check(model, sequence_length)
        rates = dataclasses.asdict(rates_of(model)) | {"head": None}
        check(
            self.pair is not None or any(rates.values()),
            "objective.pair is None, so that a text and itself with other dropout are a pair, and the model has no "
            "dropout: set its rates, such as with models.dropout.with_dropout, or name a field with pairs",
        )

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.SEPARATOR,)

    def texts(self, document: str) -> Iterable[str]:
        return record_fields.texts_of(document, self.fields)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "ContrastiveExamples":
        return ContrastiveExamples(self.fields, marks(model, tokenizer), sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> ContrastiveBatch:
        texts = []
        for number in range(len(self.fields)):
            tokens, positions, segments = (
                rows[_prefix(number) + name] for name in ("tokens", "positions", "segment_ids")
            )
            texts.append(Inputs(tokens, SequenceInfo(positions, segments)))
        return ContrastiveBatch(tuple(texts), rows["weights"])

    def loss(
        self,
        model: Any,
        params: Any,
        batch: ContrastiveBatch,
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """Sum over the rows, and metrics: 'loss' (nats), 'accuracy', how often the pair has the highest score, and
        those of MoE layers. See `Objective`."""
        texts = batch.texts if len(batch.texts) > 1 else 2 * batch.texts
        # The texts of a row are adjacent, so that no row moves to another device.
        inputs = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *texts)
        vectors_BD, output = self.embedded(model, params, inputs, key)
        vectors_BVD = vectors_BD.reshape(-1, len(texts), vectors_BD.shape[-1])
        metrics = info_nce(vectors_BVD, batch.weights_B, self.temperature)
        # The balance of a row's texts counts as that of one.
        shares_B1 = jnp.repeat(batch.weights_B / len(texts), len(texts))[:, None]
        balance_loss, routing = balance(output.aux, shares_B1, whole)
        return metrics["loss"].total + balance_loss, {**metrics, **routing}

    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {**fields, **{field: fields.get(self.text) for field in self.fields}}

    def scores(self, model: Any, params: Any, batch: ContrastiveBatch) -> jax.Array:
        """See `Predictor`: the embeddings of the texts."""
        return self.embedded(model, params, batch.texts[0])[0]

    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        return {"embedding": scores.tolist()}

    def embedded(
        self, model: Any, params: Any, inputs: Inputs, key: jax.Array | None = None
    ) -> tuple[jax.Array, Output]:
        """Embeddings of length 1, float32 [B, D], and the output that they are from.

        Args:
          key: for dropout; None: nothing is dropped.
        """
        rngs = None if key is None else {"dropout": key}
        output = applied(model, params, inputs, method="hidden", rngs=rngs)
        hidden_BTD, real_BT = output.hidden_BTD.astype(jnp.float32), inputs.located().real_BT
        if self.pooling == "first":
            pooled_BD = hidden_BTD[:, 0]
        else:
            counts_B1 = jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1)
            pooled_BD = jnp.sum(hidden_BTD * real_BT[..., None], axis=1) / counts_B1
        # A row of padding has the vector 0, of which the norm has no gradient.
        squares_B1 = jnp.sum(jnp.square(pooled_BD), axis=1, keepdims=True)
        return pooled_BD * jax.lax.rsqrt(jnp.maximum(squares_B1, 1e-24)), output

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`. All texts of a row are counted, and no head."""
        body = dataclasses.replace(model, head=None) if isinstance(model, TransformerConfig) else model
        return max(len(self.fields), 2) * count.training_flops(body, sequence_length)


def info_nce(vectors_BVD: jax.Array, weights_B: jax.Array, temperature: float) -> dict[str, Ratio]:
    """'loss' and 'accuracy' of finding the second vector of a row among all second ones, then all third ones, by its
    product with the first.

    Args:
      vectors_BVD: float32, of length 1.
      weights_B: rows with weight 0 are no candidates.
    """
    rows, views, _ = vectors_BVD.shape
    candidates_ND = jnp.moveaxis(vectors_BVD[:, 1:], 1, 0).reshape(rows * (views - 1), -1)
    scores_BN = jnp.einsum("BD,ND->BN", vectors_BVD[:, 0], candidates_ND, precision="highest") / temperature
    # A row of padding is its own candidate, so that its loss is a number.
    own_BN = jnp.eye(rows, rows * (views - 1), dtype=bool)
    real_N = jnp.tile(weights_B != 0, views - 1)
    scores_BN = jnp.where(real_N | own_BN, scores_BN, -jnp.inf)
    nats_B = jax.nn.logsumexp(scores_BN, axis=1) - jnp.diagonal(scores_BN)
    right_B = jnp.argmax(scores_BN, axis=1) == jnp.arange(rows)
    return {"loss": Ratio.of(nats_B, weights_B), "accuracy": Ratio.of(right_B, weights_B)}


class ContrastiveExamples(RecordExamples):
    """Rows of the sequences `text_0_`, `text_1_`, ... and the value `weights`, which is 1."""

    values = (TokenField("weights", "float32"),)

    def __init__(self, fields: tuple[str, ...], marks: Marks, length: int):
        self._fields, self._marks = fields, marks
        self.parts = tuple(f"text {number}" for number in range(len(fields)))
        self.sequences = tuple(RecordSequence(length, _prefix(number)) for number in range(len(fields)))

    @property
    def identity(self) -> str:
        return repr(("texts", self._fields))

    def encode(self, records: Sequence[StructuredRecord], tokenizer: Tokenizer) -> list[tuple[np.ndarray, ...] | str]:
        read = [self._read(record) for record in records]
        ids = iter(tokenizer.encode_batch([text for one in read if not isinstance(one, str) for text in one]))
        return [one if isinstance(one, str) else tuple(next(ids) for _ in one) for one in read]

    def _read(self, record: StructuredRecord) -> list[str] | str:
        try:
            return [record_fields.text(record, field) for field in self._fields]
        except record_fields.Unusable as reason:
            return str(reason)

    def lengths(self, parts: np.ndarray) -> np.ndarray:
        return parts + 2  # bos and the separator

    def document(self, parts: Row, generator: np.random.Generator) -> Row:
        tokens = {
            _prefix(number) + "tokens": self._marks.joined([parts[name]])[0] for number, name in enumerate(self.parts)
        }
        return tokens | {"weights": np.array(1.0, np.float32)}

    def truncated(self, parts: Row) -> Row:
        """The beginning of each text."""
        return {name: array[: self.sequences[0].length - 2] for name, array in parts.items()}


def _prefix(number: int) -> str:
    return f"text_{number}_"
