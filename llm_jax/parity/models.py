"""Small models with an objective and its batches, which every strategy must train equally."""

import dataclasses
from collections.abc import Callable

import numpy as np

from llm_jax.data.examples import Row
from llm_jax.layers.attention.masks import Bidirectional
from llm_jax.layers.ffn.balance import ZLoss
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import DenseConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.models.block import BlockConfig
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.families.llama import llama
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.t5 import t5
from llm_jax.models.stack import Segment
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.masked_lm import MaskedLMConfig
from llm_jax.objectives.objective import AnyBatch, Objective
from llm_jax.objectives.sequence_to_sequence import SequenceToSequenceConfig
from llm_jax.objectives.span_corruption import SpanCorruptionConfig

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


def _packed(length: int, generator: np.random.Generator) -> list[Row]:
    """Rows of two packed documents, most with padding at the end. Tokens follow a rule that can be learned."""
    rows = []
    for row in range(ROWS):
        cut, end = 5 + row % 7, length - row % 4
        segments, positions = np.zeros((2, length), np.int32)
        segments[:cut], segments[cut:end] = 1, 2
        positions[:cut], positions[cut:end] = np.arange(cut), np.arange(end - cut)
        tokens = (generator.integers(0, VOCAB - 16) + generator.integers(1, 4) * np.arange(length)) % (VOCAB - 16)
        rows.append({"tokens": tokens.astype(np.int32), "segment_ids": segments, "positions": positions})
    return rows


def _copied(row: Row) -> Row:
    """A row whose documents are sources, and targets as well."""
    read = np.where(row["positions"] == 0, VOCAB - 1, np.roll(row["tokens"], 1))
    pairs = {prefix + name: array for prefix in ("encoder_", "target_") for name, array in row.items()}
    return pairs | {"decoder_tokens": read}


@dataclasses.dataclass(frozen=True)
class ParityTask:
    """A model, and what it is trained on."""

    model: Callable[[], ModelConfig]
    objective: Objective
    length: int = LENGTH
    """Tokens of a row, without the one that only next-token prediction needs."""

    def batch(self, step: int) -> AnyBatch:
        """The batch of a step, the same in every layout."""
        generator, objective = np.random.default_rng(step), self.objective
        if isinstance(objective, SequenceToSequenceConfig):
            rows = [_copied(row) for row in _packed(self.length, generator)]
        else:
            examples = objective.examples(self.model(), None, self.length)
            rows = [examples.row(row, generator) for row in _packed(self.length + 1, generator)]
        return objective.batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _decoder() -> TransformerConfig:
    return llama(8, 8, 32, hidden=48, kv_heads=4, vocab_size=VOCAB, max_length=LENGTH)


def _pair() -> ModelConfig:
    # A smooth activation: of a score near zero, rounding decides on which side of a ReLU's kink it lies.
    size = {"vocab_size": VOCAB, "max_length": LENGTH, "activation": "gelu_tanh"}
    return t5(8, 8, 32, hidden=64, head_dim=4, gated=True, **size)


def _hybrid() -> ModelConfig:
    size = {"vocab_size": VOCAB, "max_length": LENGTH, "pattern": ("recurrent", "attention")}
    return recurrent_gemma(16, 8, 32, hidden=48, kv_heads=4, window=6, **size)


MODELS: dict[str, ParityTask] = {
    "decoder": ParityTask(_decoder, CausalLMConfig(chunks=2)),
    "encoder": ParityTask(
        # Without biases of keys, whose gradients are rounding errors alone.
        lambda: _decoder().with_mask(Bidirectional()),
        MaskedLMConfig(rate=0.25),
    ),
    "encoder-decoder": ParityTask(_pair, SequenceToSequenceConfig()),
    # 7 of 32 tokens fewer than the row has in the encoder's sequence, and 16 in the decoder's: both can be divided.
    "encoder-decoder, spans": ParityTask(_pair, SpanCorruptionConfig(rate=11 / 39, mean_span=11 / 4), length=39),
    "hybrid": ParityTask(_hybrid, CausalLMConfig(chunks=2)),
    "mixture": ParityTask(_mixture, CausalLMConfig(chunks=2)),
}
