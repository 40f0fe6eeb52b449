"""A block: token mixer and feed-forward layer on a residual stream.

Legend: B batch, T length, D model width.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_fraction, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.attention import CrossAttentionConfig
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.ffn import FFN
from llm_jax.layers.ffn.routing_statistics import RoutingAux
from llm_jax.layers.mixer import Mixer
from llm_jax.layers.norms import Norm
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain

Branch = Callable[[str, jax.Array], jax.Array]
"""(name of the branch, its input) -> its output."""


@configclass
class Serial:
    """The mixer, then the ffn, each x -> stream(x + after(f(before(x)))), where `before`, `after` and `stream` are
    norms or the identity.

    Only `before`: the pre-norm block (Xiong et al. 2020, arXiv:2002.04745). Only `stream`: the post-norm block
    (Vaswani et al. 2017, arXiv:1706.03762, 3.1). `before` and `after`: the sandwich (Gemma 2; arXiv:2408.00118, 2).
    Only `after`: OLMo 2 (arXiv:2501.00656, 3.1).
    """

    before: bool = True
    after: bool = False
    stream: bool = False

    def __post_init__(self):
        check(self.norms(2) > 0, "wiring has no norm: set at least one of before, after and stream")

    def norms(self, branches: int) -> int:
        """Number of norms of a block of `branches` branches."""
        return branches * (self.before + self.after + self.stream)

    def reads_normed(self, branch: str) -> bool:
        """Whether there is a norm before the branch of this name."""
        return self.before


@configclass
class ScaledSerial(Serial):
    """`Serial` with each branch output multiplied by `factor` (Granite Team 2024,
    github.com/ibm-granite/granite-3.0-language-models/blob/main/paper.pdf, section 2: its residual multiplier)."""

    factor: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(factor=self.factor)


@configclass
class NormedInput(Serial):
    """`Serial` without a norm before the mixer, for the block after a normalised embedding (Warner et al. 2024,
    arXiv:2412.13663, 2.1.1: ModernBERT's first block)."""

    def norms(self, branches: int) -> int:
        """Number of norms of a block of `branches` branches."""
        return super().norms(branches) - self.before

    def reads_normed(self, branch: str) -> bool:
        """Whether there is a norm before the branch of this name."""
        return self.before and branch != "mixer"


@configclass
class Parallel:
    """x + mixer(norm(x)) + ffn(norm(x)) (GPT-J; Chowdhery et al. 2022, arXiv:2204.02311, 2)."""

    shared_norm: bool = True
    """Whether mixer and ffn share one input norm; GPT-NeoX has a norm for each."""

    def norms(self, branches: int) -> int:
        """Number of norms of a block of `branches` branches."""
        return 1 if self.shared_norm else branches


@configclass
class Chain:
    """ffn(mixer(x)), without residual connections and norms, as in networks before 2015."""

    def norms(self, branches: int) -> int:
        """Number of norms of a block of `branches` branches."""
        return 0


Wiring = Serial | ScaledSerial | NormedInput | Parallel | Chain


@configclass
class BlockConfig:
    """A block with up to three branches: a token mixer, cross-attention, and an ffn."""

    mixer: Mixer
    ffn: FFN | None
    """None: the block has no ffn."""
    norm: Norm | None
    """None if the wiring has no norms."""
    wiring: Wiring = Serial()
    dropout: float = 0.0
    """Dropout rate of the output of each branch in training."""
    cross: CrossAttentionConfig | None = None
    layer_drop: float = 0.0
    """Probability that a training step skips the block (Huang et al. 2016, arXiv:1603.09382). As in Fan et al. 2020
    (arXiv:1909.11556, 3.2) there is one draw for all sequences, and outputs are not scaled."""

    def __post_init__(self):
        check_fraction(dropout=self.dropout, layer_drop=self.layer_drop)
        check(
            (self.norm is None) == (self.wiring.norms(2) == 0),
            f"norm is {self.norm} and wiring {self.wiring}: a wiring with norms requires a norm, a Chain requires None",
        )

    @property
    def branches(self) -> tuple[Any, ...]:
        """Configs of the branches that the block has, in order."""
        return tuple(branch for branch in (self.mixer, self.cross, self.ffn) if branch is not None)

    def parameters(self, width: int) -> int:
        norms = self.wiring.norms(len(self.branches))
        return sum(branch.parameters(width) for branch in self.branches) + (
            norms * self.norm.parameters(width) if self.norm is not None else 0
        )

    def active_parameters(self, width: int) -> float:
        """Mean number of parameters used per token."""
        idle = 0 if self.ffn is None else self.ffn.parameters(width) - self.ffn.active_parameters(width)
        return self.parameters(width) - idle

    def forward_flops(self, width: int, length: int, encoder_length: int = 0) -> float:
        """Forward FLOPs per token of a sequence of `length` tokens with `encoder_length` encoder tokens."""
        flops = self.mixer.matrix_flops(width) + self.mixer.mixing_flops(length)
        if self.cross is not None:
            # Costs are per decoder token, of which each has encoder_length / length encoder tokens.
            flops += self.cross.matrix_flops(width, encoder_length / length) + self.cross.mixing_flops(encoder_length)
        return flops + (self.ffn.matrix_flops(width) if self.ffn is not None else 0)

    def allocate(self, batch: int, slots: int, encoder_length: int, dtype: Any) -> dict[str, Any]:
        """Empty states of the branches, for `slots` cache positions and `encoder_length` encoder tokens."""
        states = {"mixer": self.mixer.allocate(batch, slots, dtype)}
        return states | ({"cross": self.cross.allocate(batch, encoder_length, dtype)} if self.cross else {})


class Block(nn.Module):
    """x [B, T, D] -> (y [B, T, D], states of the branches by name, `RoutingAux` of the ffn)."""

    config: BlockConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, states: dict[str, Any] | None = None
    ) -> tuple[jax.Array, dict[str, Any] | None, RoutingAux | None]:
        after, found = dict(states or {}), []

        def branch(name: str, x_BTD: jax.Array) -> jax.Array:
            module = getattr(self.config, name).build(self.width, self.precision, name)
            # All-gathered here once, and not for each product that reads it.
            x_BTD = constrain(x_BTD, axes.BATCH, axes.LENGTH, axes.WIDTH)
            if name == "ffn":
                y_BTD, aux = module(x_BTD, context)
                found.append(aux)
            else:
                y_BTD, after[name] = module(x_BTD, context, after.get(name))
            # The same for its gradients; otherwise their sharding would affect the sharding inside the branch.
            y_BTD = constrain(y_BTD, axes.BATCH, axes.LENGTH, axes.WIDTH)
            tap(self, f"{name}_output", lambda: y_BTD)
            return y_BTD

        names = [name for name in ("mixer", "cross", "ffn") if getattr(self.config, name) is not None]
        y_BTD, aux = self._wired(x_BTD, names, branch), next(iter(found), None)
        if self.config.layer_drop and self.has_rng("dropout"):
            # A selection, not a branch of the program: a skipped block is computed all the same.
            stays = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.config.layer_drop)
            y_BTD = jnp.where(stays, y_BTD, x_BTD)
            # A step that skips the block has no per-sequence balance loss either.
            aux = aux and dataclasses.replace(aux, loss_B=jnp.where(stays, aux.loss_B, 0))
        tap(self, "stream", lambda: y_BTD)
        return y_BTD, after if states is not None else None, aux

    def _wired(self, x_BTD: jax.Array, names: list[str], branch: Branch) -> jax.Array:
        wiring = self.config.wiring
        if isinstance(wiring, Serial):
            return self._serial(wiring, x_BTD, names, branch)
        if isinstance(wiring, Parallel):
            return self._parallel(wiring, x_BTD, names, branch)
        return self._chain(x_BTD, names, branch)

    def _serial(self, wiring: Serial, x_BTD: jax.Array, names: list[str], branch: Branch) -> jax.Array:
        for name in names:
            y_BTD = branch(name, self._norm(f"{name}_norm", x_BTD, wiring.reads_normed(name)))
            y_BTD = self._norm(f"{name}_out_norm", y_BTD, wiring.after)
            x_BTD = self._add(x_BTD, y_BTD * wiring.factor if isinstance(wiring, ScaledSerial) else y_BTD)
            x_BTD = self._norm(f"{name}_stream_norm", x_BTD, wiring.stream)
        return x_BTD

    def _parallel(self, wiring: Parallel, x_BTD: jax.Array, names: list[str], branch: Branch) -> jax.Array:
        shared, first = wiring.shared_norm, names[0]
        normal_BTD = self._norm(f"{first}_norm", x_BTD)
        read = {name: normal_BTD if shared or name == first else self._norm(f"{name}_norm", x_BTD) for name in names}
        return self._add(x_BTD, functools.reduce(operator.add, (branch(name, read[name]) for name in names)))

    def _chain(self, x_BTD: jax.Array, names: list[str], branch: Branch) -> jax.Array:
        for name in names:
            x_BTD = self._dropped(branch(name, x_BTD))
        return x_BTD

    def _norm(self, name: str, x_BTD: jax.Array, present: bool = True) -> jax.Array:
        norm = self.config.norm
        return norm.build(self.precision, name)(x_BTD) if present and norm is not None else x_BTD

    def _add(self, x_BTD: jax.Array, branch_BTD: jax.Array) -> jax.Array:
        """The residual stream plus the output of a branch."""
        # Between branches the stream may be sharded along the sequence: sequence parallelism (Korthikanti et al. 2022,
        # arXiv:2205.05198) and context parallelism differ from other strategies by this axis.
        return constrain(x_BTD + self._dropped(branch_BTD), axes.BATCH, axes.STREAM, axes.WIDTH)

    def _dropped(self, branch_BTD: jax.Array) -> jax.Array:
        drop = nn.Dropout(self.config.dropout, deterministic=not self.has_rng("dropout"))
        return drop(branch_BTD)
