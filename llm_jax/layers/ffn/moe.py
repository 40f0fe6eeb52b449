"""Mixture of experts: a router sends every token to a few of many feed-forward layers.

Legend: B batch, T length, D model width, E experts, P shards of their inner features.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.balance import Balance, check_balance, report
from llm_jax.layers.ffn.dispatch import Dispatch
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.experts import Experts, Local, Weights, logical_axes
from llm_jax.layers.ffn.ffn import FFN
from llm_jax.layers.ffn.mlp import DenseConfig
from llm_jax.layers.ffn.routing import Router, Routes, load
from llm_jax.layers.ffn.routing_statistics import RoutingAux
from llm_jax.layers.linear import LinearLayer
from llm_jax.layers.roles import Role
from llm_jax.layers.tap import tap
from llm_jax.sharding import axes, partition
from llm_jax.sharding.device_group import DeviceGroup

_TOKENS = (axes.BATCH, axes.LENGTH)


@configclass
class MoEConfig(FFN):
    """Sum of weight * expert(x) over the experts chosen by a router (Shazeer et al. 2017, arXiv:1701.06538, eq. 1)."""

    count: int
    """Number of routed experts."""
    expert: DenseConfig
    """Config of each routed expert."""
    router: Router
    dispatch: Dispatch = Dropless()
    """How tokens are sent to their experts. All dispatches compute the same results where no choice is dropped."""
    balance: tuple[Balance, ...] = ()
    shared: DenseConfig | None = None
    """Shared expert for all tokens (Dai et al. 2024, arXiv:2401.06066, 3.2). Several shared experts equal one with
    their summed width. The dense ffn beside the experts of Snowflake's Arctic is also a shared expert, except that
    Arctic's experts read the residual stream before the attention."""
    shared_gate: bool = False
    """Whether the output of the shared expert is multiplied by sigmoid(x w), one scalar per token (Qwen2-MoE, Yang et
    al. 2024, arXiv:2407.10671, 2.2.2)."""

    def __post_init__(self):
        check_positive(count=self.count)
        check(
            self.shared is not None or not self.shared_gate,
            "shared_gate is True and shared is None: set shared, or shared_gate to False",
        )
        check(
            self.expert.dropout < 1,
            f"expert.dropout is {self.expert.dropout}: it must be at least 0 and less than 1",
        )
        self.router.check(self.count)
        kind, serves = self.router.routes, self.dispatch.serves
        check(
            kind in serves,
            f"router {type(self.router).__name__} returns {kind.__name__} and dispatch {type(self.dispatch).__name__} "
            f"supports {' or '.join(served.__name__ for served in serves)}: use another dispatch",
        )
        self.dispatch.check(self.router)
        check_balance(self.balance, self.router)

    @property
    def non_causal(self) -> tuple[str, ...]:
        """Type names of the parts through which a token depends on later tokens."""
        return tuple(type(part).__name__ for part in (self.router, self.dispatch) if not part.causal)

    def check_rows(self, length: int, parts: int) -> None:
        """
        Raises:
          ValueError: if groups do not divide a sequence of `length` tokens in `parts` shards, one per device.
        """
        self.router.check_rows(length, parts)
        self.dispatch.check_rows(length, parts)

    def build(self, width: int, precision: Precision, name: str) -> "MoE":
        return MoE(self, width, precision, name=name)

    def parameters(self, width: int) -> int:
        shared = self.shared.parameters(width) + self.shared_gate * width if self.shared else 0
        return self.router.parameters(width, self.count) + self.count * self.expert.parameters(width) + shared

    def active_parameters(self, width: int) -> float:
        """Mean number of parameters used per token."""
        idle = self.count - self.router.choices(self.count)
        return self.parameters(width) - idle * self.expert.parameters(width)

    def matrix_flops(self, width: int) -> float:
        """Forward FLOPs per token."""
        shared = self.shared.matrix_flops(width) + self.shared_gate * 2 * width if self.shared else 0
        chosen = self.router.choices(self.count) * self.expert.matrix_flops(width)
        return self.router.matrix_flops(width, self.count) + chosen + shared


class MoE(nn.Module):
    """x [B, T, D] -> ([B, T, D], RoutingAux)."""

    config: MoEConfig
    width: int
    precision: Precision

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, RoutingAux]:
        config, real_BT = self.config, context.queries.real_BT
        config.check_rows(
            x_BTD.shape[1], partition.parts(axes.LENGTH) if partition.divides(x_BTD.shape, _TOKENS) else 1
        )
        # Route, compute and combine; then the shared expert, which every token visits.
        routed = config.router.build(self.width, config.count, self.precision, "router")(x_BTD, context)
        tap(self, "visits", lambda: load(routed.routes, config.count, real_BT.astype("float32")))
        weights = Experts(config.expert, config.count, self.width, self.precision, name="experts")()
        y_BTD, served_BT = self._dispatched(weights, x_BTD, routed.routes, real_BT)
        if config.shared is not None:
            y_BTD += self._shared(config.shared, x_BTD, context)
        return y_BTD, report(config.balance, routed, config.count, served_BT, real_BT)

    def _shared(self, expert: DenseConfig, x_BTD: jax.Array, context: Context) -> jax.Array:
        """Output of the shared expert."""
        y_BTD = expert.build(self.width, self.precision, "shared")(x_BTD, context)[0]
        if not self.config.shared_gate:
            return y_BTD
        init, logical_axes = expert.init, (axes.EMBED, axes.ROUTES)
        shape, role = (self.width, 1), Role.READOUT
        gate = LinearLayer("BTD,DE->BTE", shape, logical_axes, init, self.precision, role=role, name="shared_gate")
        return broadcast(jax.nn.sigmoid(gate(x_BTD)), y_BTD.shape, y_BTD.dtype) * y_BTD

    def _dispatched(
        self, weights: Weights, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Output of the experts and number of served choices. Every device dispatches its own tokens."""
        # In initialisation and generation the batch need not divide over the devices.
        layout = partition.active() if partition.divides(x_BTD.shape, _TOKENS) else None
        config, dtype = self.config, self.precision.dtype

        key = self.make_rng("dropout") if config.expert.dropout and self.has_rng("dropout") else None

        def serve(
            lines: list[DeviceGroup], weights: Weights, x_BTD: jax.Array, routes: Routes, real_BT: jax.Array, key: Any
        ) -> tuple[jax.Array, jax.Array]:
            local = Local.of(config.expert, config.count, weights, *lines[:3])
            if key is not None:
                # Devices compute different rows or different inner features, so each needs its own key.
                indices = [line.index for line in lines if line.axes]
                local = dataclasses.replace(local, key=functools.reduce(jax.random.fold_in, indices, key))
            y_BTD, served_BT = config.dispatch.run(local, x_BTD.astype(dtype), routes, real_BT)
            # [1, B, T, D]: P is the first axis.
            return y_BTD[None], served_BT

        with partition.using(layout):
            lines = [partition.device_group(word, axes.EXPERTS) for word in (axes.EMBED, axes.MLP)]
            lines = [partition.device_group(axes.EXPERTS), *lines, *map(partition.device_group, _TOKENS)]
            tokens = routes.logical_axes
            inputs = (
                logical_axes(config.expert),
                tokens,
                jax.tree.map(lambda _: tokens, routes),
                tokens,
                None if key is None else (),
            )
            # One partial result for each shard of the inner features. The compiler sums them, because it knows the
            # sharding of the sum.
            outputs = ((axes.MLP, *tokens), tokens)
            run = partition.per_device(functools.partial(serve, lines), inputs, outputs)
            y_PBTD, served_BT = run(weights, x_BTD, routes, real_BT, key)
        return jnp.sum(y_PBTD, axis=0), served_BT
