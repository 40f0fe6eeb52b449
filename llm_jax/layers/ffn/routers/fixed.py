"""Routers without parameters, whose choices do not depend on hidden states.

Legend: B batch, T length, V vocabulary, E experts, K choices of a token.
"""

import heapq
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, check_positive, given
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.routers.groups import best
from llm_jax.layers.ffn.routing import Choice, Routed, Router


class _FixedConfig(Router):
    """Base of these routers: `top` experts of equal weight."""

    top: int
    scored = False

    def __post_init__(self):
        check_positive(top=self.top)

    def check(self, experts: int) -> None:
        """
        Raises:
          ValueError: if `top` exceeds the number of experts.
        """
        check(
            self.top <= experts,
            f"router.top is {self.top} and there are {experts} experts: it must not exceed the number of experts",
        )

    def parameters(self, width: int, experts: int) -> int:
        return 0

    def matrix_flops(self, width: int, experts: int) -> int:
        """Forward FLOPs per token."""
        return 0

    def choices(self, experts: int) -> float:
        """Mean number of experts per token."""
        return self.top


@configclass
class HashConfig(_FixedConfig):
    """Hash layers: the experts of a token are a function of its id (Roller et al. 2021, arXiv:2106.04426, section
    3.1)."""

    top: int = 1
    """Number of experts of a token; their weights are equal and sum to one."""
    counts: tuple[int, ...] | None = None
    """Frequency of each token id. Ids are assigned in order of falling frequency, each to the experts with the least
    load so far (section 3.1, balanced assignment). None: assignment by a hash of the id, which is only as balanced as
    the frequencies allow."""

    def __post_init__(self):
        super().__post_init__()
        check(
            self.counts is None or (len(self.counts) > 0 and min(self.counts) >= 0),
            "router.counts is empty or has a negative count: set one count per id of the vocabulary, or None",
        )

    def check_vocabulary(self, size: int) -> None:
        """
        Raises:
          ValueError: if the number of counts is not `size`.
        """
        check(
            self.counts is None or len(self.counts) == size,
            f"router.counts has {len(self.counts or ())} entries and vocab_size is {size}: set one count per id, or "
            "None",
        )

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "HashRouter":
        return HashRouter(self, experts, name=name)


@configclass
class RandomConfig(_FixedConfig):
    """Random experts for every token in training, and experts by position in evaluation: a baseline for routers."""

    top: int = 1
    """Number of experts of a token; their weights are equal and sum to one."""

    def build(self, width: int, experts: int, precision: Precision, name: str) -> "RandomRouter":
        return RandomRouter(self, experts, name=name)


class HashRouter(nn.Module):
    """x [B, T, D] -> Routed.

    Raises:
      ValueError: if it is called without token ids.
    """

    config: HashConfig
    experts: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        tokens_BT = given(
            context.tokens_BT,
            "router HashConfig requires token ids, and the inputs have features only: pass tokens_BT, or use another "
            "router",
        )
        if self.config.counts is None:
            return _equal(_hashed(tokens_BT, self.config.top, self.experts))
        table_VK = dealt(self.config.counts, self.config.top, self.experts)
        return _equal(jnp.asarray(table_VK)[tokens_BT])


class RandomRouter(nn.Module):
    """x [B, T, D] -> Routed."""

    config: RandomConfig
    experts: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> Routed:
        if not self.has_rng("dropout"):
            return _equal(_hashed(context.queries.positions_BT, self.config.top, self.experts))
        drawn_BTE = jax.random.uniform(self.make_rng("dropout"), (*x_BTD.shape[:2], self.experts))
        return _equal(best(drawn_BTE, self.config.top))


def dealt(counts: tuple[int, ...], top: int, experts: int) -> np.ndarray:
    """The experts of each id, int32 [V, K], assigned so that the experts get about equal numbers of tokens."""
    table_VK = np.zeros((len(counts), top), np.int32)
    loads = [(0, expert) for expert in range(experts)]
    for token in sorted(range(len(counts)), key=lambda token: -counts[token]):
        # All of them are taken out before any is put back, so that a token gets different experts.
        least = [heapq.heappop(loads) for _ in range(top)]
        table_VK[token] = [expert for _, expert in least]
        for load, expert in least:
            heapq.heappush(loads, (load + counts[token], expert))
    return table_VK


def _hashed(numbers_BT: jax.Array, top: int, experts: int) -> jax.Array:
    """The `top` experts of highest hash(number, expert), int32 [B, T, K]: uniform and without repetition."""
    mixed_BTE = _mixed(_mixed(numbers_BT.astype(jnp.uint32))[..., None] + jnp.arange(experts, dtype=jnp.uint32))
    # The shift leaves 31 bits, so that the signed integer has the order of the unsigned one.
    return best((mixed_BTE >> 1).astype(jnp.int32), top)


def _mixed(x: Any) -> Any:
    """A bijection of 32 bits in which every bit of the result depends on all of x (finalizer of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def _equal(experts_BTK: jax.Array) -> Routed:
    weights_BTK = jnp.full(experts_BTK.shape, 1 / experts_BTK.shape[-1], jnp.float32)
    return Routed(Choice(experts_BTK, weights_BTK))
