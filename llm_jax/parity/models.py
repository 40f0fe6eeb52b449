"""Small models of four kinds with data and objective, which every strategy must train equally.

Legend: B batch, T length.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.layers.ffn.balance import ZLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import DenseConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.build import Model, applied
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.families.llama import llama
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.t5 import t5
from llm_jax.models.stack import Segment
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.losses import balance, cross_entropy
from llm_jax.objectives.objective import NO_MODELS, Models, Needs, Objective

VOCAB = 96
LENGTH = 32
ROWS = 32

EXPERTS = 8


def _mixture() -> TransformerConfig:
    """A decoder with experts in two of three blocks, one dropless and one with limited capacity. Its balance losses are
    per sequence, so that they do not depend on how the batch is divided."""
    config = llama(2, 8, 32, hidden=48, kv_heads=4, vocab_size=VOCAB, max_length=LENGTH)
    dense = config.segments[0].blocks[0]
    expert = dense.ffn
    if not isinstance(expert, DenseConfig):
        raise ValueError(f"blocks of llama have {type(expert).__name__}: experts require a DenseConfig")

    def experts(dispatch: Dispatch) -> BlockConfig:
        ffn = MoEConfig(EXPERTS, expert, SoftmaxConfig(top=2), dispatch, balance=(ZLoss(0.01),))
        return dataclasses.replace(dense, ffn=ffn)

    group = (experts(Dropless()), dense, experts(Capacity(1.0, group=8)))
    return dataclasses.replace(config, segments=(Segment(group, 8),))


MODELS: dict[str, Callable[[], ModelConfig]] = {
    "decoder": lambda: llama(8, 8, 32, hidden=48, kv_heads=4, vocab_size=VOCAB, max_length=LENGTH),
    "encoder-decoder": lambda: t5(8, 8, 32, hidden=64, head_dim=4, vocab_size=VOCAB, max_length=LENGTH, gated=True),
    "hybrid": lambda: recurrent_gemma(
        16,
        8,
        32,
        hidden=48,
        kv_heads=4,
        vocab_size=VOCAB,
        max_length=LENGTH,
        window=6,
        pattern=("recurrent", "attention"),
    ),
    "mixture": _mixture,
}


@configclass
class ContinuationConfig(Objective):
    """Next-token prediction by a decoder whose encoder reads the same sequence: a loss for comparison, not a task."""

    needs = Needs("encoder-decoder")

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return Batch.next_tokens(rows)

    def loss(
        self,
        model: EncoderDecoder,
        params: Any,
        batch: Batch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """See `CausalLMConfig.loss`."""
        rngs = None if key is None else {"dropout": key}
        output = applied(model, params, dataclasses.replace(batch.inputs, encoder=batch.inputs), rngs=rngs)
        scores = lambda _, logits_BTV: logits_BTV  # noqa: E731
        total, metrics = cross_entropy(scores, (), output.logits_BTV, batch.targets_BT, batch.loss_weights_BT)
        added, routing = balance(output.aux, batch.loss_weights_BT, whole)
        return total + added, metrics | routing


def objective(model: Model) -> Objective:
    """The training objective of a model of MODELS."""
    return ContinuationConfig() if isinstance(model, EncoderDecoder) else CausalLMConfig(chunks=2)


def batch(step: int) -> Batch[np.ndarray]:
    """Rows of two packed documents, most with padding at the end. Tokens follow a rule that can be learned."""
    generator = np.random.default_rng(step)
    segments, positions = np.zeros((2, ROWS, LENGTH + 1), np.int32)
    for row in range(ROWS):
        cut, end = 5 + row % 7, LENGTH + 1 - row % 4
        segments[row, :cut], segments[row, cut:end] = 1, 2
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
    first, stride = generator.integers(0, VOCAB, (ROWS, 1)), generator.integers(1, 4, (ROWS, 1))
    tokens = ((first + stride * np.arange(LENGTH + 1)) % VOCAB).astype(np.int32)
    return Batch.next_tokens({"tokens": tokens, "segment_ids": segments, "positions": positions})
