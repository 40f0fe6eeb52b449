"""Replaced-token detection: a generator fills masked tokens, and a discriminator finds those that it got wrong.

Legend: B batch, T length, K predicted tokens, C length of a chunk, D model width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core import rng
from llm_jax.core.checks import check, check_not_negative
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.models import count
from llm_jax.models.build import applied
from llm_jax.models.config import GeneratorDiscriminatorConfig, ModelConfig
from llm_jax.models.heads import ClassHead
from llm_jax.objectives.batch import Array, Batch
from llm_jax.objectives.losses import Unembed, balance, cross_entropy
from llm_jax.objectives.masked_lm import MaskedExamples, MaskedLMConfig
from llm_jax.objectives.objective import NO_MODELS, Models, Needs, Objective
from llm_jax.objectives.token_objective import gathers, scored
from llm_jax.tokenizers.tokenizer import Tokenizer


@flax.struct.dataclass
class ReplacedBatch(Generic[Array]):
    """A batch of the generator, and the text.

    Attributes:
      masked: what the generator reads, and its targets.
      tokens_BT: int32, the tokens of the text.
    """

    masked: Batch
    tokens_BT: Array


@configclass
class ReplacedTokensConfig(Objective):
    """ELECTRA's objective (Clark et al. 2020, arXiv:2003.10555, 3.1 and 3.3): generator and discriminator are trained
    together in every step.

    The generator predicts masked tokens. A sample of its predictions replaces them, and the discriminator decides for
    every token whether it was replaced; a sample that equals the token counts as not replaced. No gradient passes
    through the sampling, so that the generator is trained by its own loss alone, and the shared embedding by both.

    The loss, in nats for each token of the text, is `weight` times the mean cross-entropy of the discriminator over all
    tokens, plus the cross-entropy of the generator summed over the masked tokens, divided by their expected number,
    `generator.rate` times the tokens. The paper's code adds the means of a batch
    (github.com/google-research/electra, run_pretraining.py); here both losses are sums over the same tokens, so that
    microbatches and devices add exactly.

    Samples are drawn by the key of the step. Evaluation has none: it draws them by a constant key and the tokens of a
    sequence, so that a sequence has the same noise in every evaluation and in every batch.
    """

    needs = Needs("generator-discriminator", heads=(ClassHead,))
    predicts_text = False

    generator: MaskedLMConfig = MaskedLMConfig(masked=1.0, random=0.0)
    """What the generator reads and predicts, and its loss. The paper masks every chosen token; its code leaves 15% of
    them as they are (pretrain/pretrain_helpers.py), which is `masked=0.85`."""
    weight: float = 50.0
    """Weight of the discriminator's loss."""

    def __post_init__(self):
        check_not_negative(weight=self.weight)

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is no generator with a discriminator; for chunks that do not divide the targets.
        """
        super().check(model, sequence_length)
        targets = self.generator.targets(sequence_length)
        check(
            targets % self.generator.chunks == 0,
            f"objective.generator.chunks is {self.generator.chunks} and sequences of {sequence_length} tokens have "
            f"{targets} targets: chunks must divide the number of targets; change one of them",
        )

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return self.generator.special_tokens(sequence_length)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> MaskedExamples:
        return self.generator.examples(model, tokenizer, sequence_length)

    def batch(self, rows: Mapping[str, Any]) -> ReplacedBatch:
        return ReplacedBatch(self.generator.batch(rows), rows["tokens"])

    def loss(
        self,
        model: Any,
        params: Any,
        batch: ReplacedBatch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """Summed loss, and metrics: 'loss', what is minimised, for each token; 'generator_loss' and
        'generator_accuracy' of masked tokens; 'discriminator_loss' and 'accuracy' of all tokens; 'replaced', the share
        of tokens that were replaced; and those of MoE layers.

        Args:
          key: for samples and dropout. None: nothing is dropped, and samples are those of evaluation.
          whole: as in `TokenObjective.loss`.
          models: not used.
        """
        rngs = None if key is None else {"dropout": key}
        noise = rng.key(0, "replaced tokens") if key is None else jax.random.fold_in(key, 1)
        masked, real_BT = batch.masked, batch.masked.inputs.located().real_BT.astype(jnp.float32)
        output = applied(model, params, masked.inputs, method="generator_hidden", rngs=rngs)
        predicted, head = scored(output.hidden_BTD, masked), model.generator_unembed_parameters(params)
        nats, generator = self._generator_loss(model, head, predicted)
        replaced_BT = self._replaced(model, head, predicted, batch, noise)
        inputs = dataclasses.replace(masked.inputs, tokens_BT=replaced_BT)
        judged = applied(model, params, inputs, rngs=rngs)
        found = _detection(judged.logits_BTV[..., 0], replaced_BT != batch.tokens_BT, real_BT)
        total = nats / self.generator.rate + self.weight * found["discriminator_loss"].total
        metrics = {"loss": Ratio(total, jnp.sum(real_BT)), **found}
        metrics |= {f"generator_{name}": metric for name, metric in generator.items()}
        balance_loss, routing = balance(output.aux | judged.aux, real_BT, whole)
        return total + balance_loss, metrics | routing

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`. The generator's head is counted for its targets only, and once: that samples are drawn from
        logits of their own is not counted."""
        if not isinstance(model, GeneratorDiscriminatorConfig):
            raise ValueError(f"model is of type {type(model).__name__}: ReplacedTokensConfig trains two encoders")
        logits = 3 * model.head.matrix_flops(*model.head_sizes)
        unscored = 1 - self.generator.targets(sequence_length) / sequence_length
        return count.training_flops(model, sequence_length) - unscored * logits

    def _generator_loss(self, model: Any, head: Any, predicted: "_Predicted") -> tuple[jax.Array, Metrics]:
        config = self.generator
        regularisers = config.chunks, config.z_loss, config.label_smoothing
        nats, metrics = cross_entropy(_unembed(model), head, *predicted, *regularisers)
        return nats, {**metrics}

    def _replaced(
        self, model: Any, head: Any, predicted: "_Predicted", batch: ReplacedBatch[jax.Array], noise: jax.Array
    ) -> jax.Array:
        """The text with samples of the generator at its masked tokens, int32 [B, T]."""
        hidden_BKD, targets_BK, weights_BK = predicted
        rows_B1, length = jnp.arange(len(targets_BK))[:, None], batch.tokens_BT.shape[1]
        # As in `scored`: all places, or those of the targets.
        every_BT = jnp.broadcast_to(jnp.arange(length), batch.tokens_BT.shape)
        at_BK = batch.masked.at_BT
        at_BK = at_BK if at_BK is not None and gathers() else every_BT
        keys_BK = _keys(noise, batch.tokens_BT, at_BK)
        ids_BK = _samples(_unembed(model), head, hidden_BKD, keys_BK, self.generator.chunks)
        # Differences are added, because a place without weight may occur more than once.
        changes_BK = jnp.where(weights_BK > 0, ids_BK - targets_BK, 0)
        return jnp.asarray(batch.tokens_BT).at[rows_B1, at_BK].add(changes_BK)


_Predicted = tuple[jax.Array, jax.Array, jax.Array]
"""Hidden states [B, K, D] of the tokens that have targets, the targets [B, K], and their weights."""


def _unembed(model: Any) -> Unembed:
    return lambda head, hidden_BCD: applied(model, head, hidden_BCD, method="generator_unembed")


def _keys(key: jax.Array, tokens_BT: jax.Array, at_BK: jax.Array) -> jax.Array:
    """A key for each place, [B, K], from the tokens of its sequence and its index, so that the noise of a sequence
    depends neither on the rest of the batch nor on the sharding."""
    places_T = jnp.arange(1, tokens_BT.shape[1] + 1, dtype=jnp.uint32)
    sums_B = jnp.sum(tokens_BT.astype(jnp.uint32) * places_T, axis=1)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, sums_B)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys_B, at_BK)


def _samples(unembed: Unembed, head: Any, hidden_BKD: jax.Array, keys_BK: jax.Array, chunks: int) -> jax.Array:
    """Tokens drawn from softmax(logits), int32 [B, K], by the maximum of logits and Gumbel noise. The logits of one
    chunk are held at a time."""
    head, hidden_BKD = jax.lax.stop_gradient((head, hidden_BKD))

    def draw(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits_BCV = unembed(head, part[0])
        noise = lambda key: jax.random.gumbel(key, logits_BCV.shape[-1:])  # noqa: E731
        return jnp.argmax(logits_BCV + jax.vmap(jax.vmap(noise))(part[1]), axis=-1).astype(jnp.int32)

    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)  # noqa: E731
    ids_CBK = jax.lax.map(draw, (cut(hidden_BKD), cut(keys_BK)))
    return jnp.moveaxis(ids_CBK, 0, 1).reshape(keys_BK.shape)


def _detection(scores_BT: jax.Array, replaced_BT: jax.Array, real_BT: jax.Array) -> dict[str, Ratio]:
    """Sums over tokens of the binary cross-entropy of their scores, and of the right decisions."""
    nats_BT = jax.nn.softplus(scores_BT) - jnp.where(replaced_BT, scores_BT, 0)
    return {
        "discriminator_loss": Ratio.of(nats_BT, real_BT),
        "accuracy": Ratio.of((scores_BT > 0) == replaced_BT, real_BT),
        "replaced": Ratio.of(replaced_BT, real_BT),
    }
