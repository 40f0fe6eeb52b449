"""A block: token mixer and feed-forward layer on a residual stream.

Legend: B batch, T length, D model width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from llm_jax.core.checks import check, check_fraction
from llm_jax.core.dtypes import Precision
from llm_jax.layers.ffn.mlp import FFNConfig
from llm_jax.layers.mixers.attention import AttentionConfig
from llm_jax.layers.mixers.masks import Placement
from llm_jax.layers.norms import NormConfig
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


@dataclasses.dataclass(frozen=True)
class Serial:
    """The mixer, then the ffn, each x -> stream(x + after(f(before(x)))), where the three are norms or nothing.

    Only `before`: the pre-norm block (Xiong et al. 2020, arXiv:2002.04745). Only `stream`: the post-norm block
    (Vaswani et al. 2017, arXiv:1706.03762, 3.1). `before` and `after`: the sandwich (Gemma 2; arXiv:2408.00118, 2).
    Only `after`: OLMo 2 (arXiv:2501.00656, 3.1).
    """

    before: bool = True
    after: bool = False
    stream: bool = False

    def __post_init__(self):
        check(self.norms > 0, "wiring has no norm: set at least one of before, after and stream")

    @property
    def norms(self) -> int:
        """Number of norms of a block."""
        return 2 * (self.before + self.after + self.stream)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """x + mixer(norm(x)) + ffn(norm(x)) (GPT-J; Chowdhery et al. 2022, arXiv:2204.02311, 2)."""

    shared_norm: bool = True
    """Whether mixer and ffn read the same normalised stream; GPT-NeoX has a norm for each."""

    @property
    def norms(self) -> int:
        """Number of norms of a block."""
        return 1 if self.shared_norm else 2


Wiring = Serial | Parallel


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """A token mixer and an ffn, wired to the residual stream."""

    mixer: AttentionConfig
    ffn: FFNConfig
    norm: NormConfig
    wiring: Wiring = Serial()
    dropout: float = 0.0
    """Share of features dropped, in training, from what each half adds to the stream."""

    def __post_init__(self):
        check_fraction(dropout=self.dropout)

    def parameters(self, width: int) -> int:
        norms = self.wiring.norms * self.norm.parameters(width)
        return self.mixer.parameters(width) + self.ffn.parameters(width) + norms


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]; the arguments are those of the mixer."""

    config: BlockConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, queries: Placement, slots: Placement | None, slot: jax.Array | None, state: Any
    ) -> tuple[jax.Array, Any]:
        config = self.config
        mixer = config.mixer.build(self.width, self.precision, "mixer")
        ffn = config.ffn.build(self.width, self.precision, "ffn")
        if isinstance(config.wiring, Parallel):
            normal_BTD = self._norm("mixer_norm", x_BTD)
            mixed_BTD, state = mixer(normal_BTD, queries, slots, state, slot)
            read_BTD = normal_BTD if config.wiring.shared_norm else self._norm("ffn_norm", x_BTD)
            return self._add(x_BTD, mixed_BTD + ffn(read_BTD)), state
        before, after, stream = config.wiring.before, config.wiring.after, config.wiring.stream
        mixed_BTD, state = mixer(self._norm("mixer_norm", x_BTD, before), queries, slots, state, slot)
        x_BTD = self._add(x_BTD, self._norm("mixer_out_norm", mixed_BTD, after))
        x_BTD = self._norm("mixer_stream_norm", x_BTD, stream)
        fed_BTD = ffn(self._norm("ffn_norm", x_BTD, before))
        x_BTD = self._add(x_BTD, self._norm("ffn_out_norm", fed_BTD, after))
        return self._norm("ffn_stream_norm", x_BTD, stream), state

    def _norm(self, name: str, x_BTD: jax.Array, present: bool = True) -> jax.Array:
        return self.config.norm.build(self.precision, name)(x_BTD) if present else x_BTD

    def _add(self, x_BTD: jax.Array, branch_BTD: jax.Array) -> jax.Array:
        """The stream with a branch added to it."""
        drop = nn.Dropout(self.config.dropout, deterministic=not self.has_rng("dropout"))
        return constrain(x_BTD + drop(branch_BTD), axes.BATCH, axes.LENGTH, axes.WIDTH)
