"""The experts: feed-forward layers of one shape with stacked parameters.

Legend: E experts, D model width, F ffn width, R rows of each expert, P rows of all experts, concatenated.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm_jax.core.checks import check
from llm_jax.core.dtypes import Precision
from llm_jax.layers.activations import ACTIVATIONS, GATED
from llm_jax.layers.broadcast import broadcast
from llm_jax.layers.ffn import chunked_all_to_all as sent
from llm_jax.layers.ffn.grouped import grouped
from llm_jax.layers.ffn.mlp import DenseConfig, GLUConfig
from llm_jax.layers.linear import StackedLinear
from llm_jax.sharding import axes
from llm_jax.sharding.device_group import DeviceGroup

Weights = dict[str, tuple[jax.Array, jax.Array | None]]
"""{matrix name: (kernel [E, D, F] in the compute dtype, bias [E, F] in the parameter dtype)}."""

_INTO, _OUT = (axes.EXPERTS, axes.EMBED, axes.MLP), (axes.EXPERTS, axes.MLP, axes.EMBED)


def names(config: DenseConfig) -> tuple[str, ...]:
    """The matrices of an expert, the output projection last."""
    return ("gate", "up", "down") if isinstance(config, GLUConfig) else ("up", "down")


def logical_axes(config: DenseConfig) -> dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]]:
    """Logical axes of kernel and bias of each matrix."""
    laid = {name: _OUT if name == "down" else _INTO for name in names(config)}
    return {name: (kernel, (kernel[0], kernel[2]) if config.bias else None) for name, kernel in laid.items()}


class Experts(nn.Module):
    """() -> Weights of `count` experts."""

    config: DenseConfig
    count: int
    width: int
    precision: Precision

    @nn.compact
    def __call__(self) -> Weights:
        config, found = self.config, {}
        for name in names(config):
            shape = (config.hidden, self.width) if name == "down" else (self.width, config.hidden)
            init = config.out_init if name == "down" else config.init
            laid = _OUT if name == "down" else _INTO
            layer = StackedLinear((self.count, *shape), laid, init, self.precision, config.bias, name=name)
            found[name] = layer()
        return found


@dataclasses.dataclass(frozen=True)
class Local:
    """The experts of one device.

    Its weights are those of its shard of the experts, and of a shard of their inner features if a strategy shards them;
    the model width is whole. If the inner features are sharded, results are partial sums, which `MoE` adds up over
    devices after it has summed the choices of a token.
    """

    config: DenseConfig
    weights: Weights
    count: int
    """Number of experts on all devices."""
    others: DeviceGroup
    """The devices over which the experts are sharded."""
    inner: DeviceGroup
    """The devices over which their inner features are sharded."""
    key: jax.Array | None = None
    """Random key of dropout on the inner features, different on each device. None: no dropout."""

    @classmethod
    def of(
        cls,
        config: DenseConfig,
        count: int,
        weights: Weights,
        others: DeviceGroup,
        width: DeviceGroup,
        inner: DeviceGroup,
    ) -> Self:
        """All-gathers weights whose model width is sharded over the devices of `width`."""

        def whole(name: str, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
            if name != "down":
                return width.gathered(kernel, 1), bias
            return width.gathered(kernel, 2), None if bias is None else width.gathered(bias, 1)

        return cls(config, {name: whole(name, *pair) for name, pair in weights.items()}, count, others, inner)

    def batched(self, rows_ERD: jax.Array, weights_ER: jax.Array | None = None) -> jax.Array:
        """Results [E, R, D] for R rows of each expert, times their float32 weights if given."""

        def products(rows_ERD: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(jnp.einsum("ERD,EDF->ERF", rows_ERD, kernel_EDF) for kernel_EDF in kernels)

        # Each device sends every other device the rows of the experts of that device.
        rows_ERD = self.others.swapped(rows_ERD, cut=0, joined=1)
        if weights_ER is not None:
            weights_ER = self.others.swapped(weights_ER, cut=0, joined=1)
        of_rows = lambda bias_EF, y_ERF: broadcast(bias_EF[:, None], y_ERF.shape, y_ERF.dtype)  # noqa: E731
        y_ERD = self._computed(rows_ERD, weights_ER, products, of_rows)
        return self.others.swapped(y_ERD, cut=1, joined=0)

    def ragged(self, rows_PD: jax.Array, weights_P: jax.Array, sizes_E: jax.Array, windows: int) -> jax.Array:
        """Results [P, D] for rows sorted by expert, times their float32 weights. Unused rows give 0.

        Args:
          sizes_E: int32, number of rows of each of all experts.
          windows: number of windows into which a device's rows are divided for the chunked all-to-all.
        """
        if self.others.size == 1:
            return self._grouped(rows_PD, weights_P, sizes_E)

        check(
            self.key is None,
            f"expert.dropout is {self.config.dropout} and Dropless with ExpertParallel does not support dropout: set "
            "expert.dropout to 0, dispatch to Capacity, or use a sharding without ExpertParallel",
        )

        def compute(weights: Weights, rows_RD: jax.Array, weights_R: jax.Array, sizes_L: jax.Array) -> jax.Array:
            own = Local(self.config, weights, len(sizes_L), DeviceGroup((), 1), self.inner)
            return own._grouped(rows_RD, weights_R, sizes_L)

        # Rows of a window: with an even load a device receives as many rows as it sends, in `windows` windows.
        size = -(-len(rows_PD) // windows)
        return sent.run(compute, self.others, size, self.weights, rows_PD, weights_P, sizes_E)

    def _grouped(self, rows_PD: jax.Array, weights_P: jax.Array, sizes_E: jax.Array) -> jax.Array:
        """`ragged` if this device holds all experts."""
        expert_P = jnp.searchsorted(jnp.cumsum(sizes_E), jnp.arange(len(rows_PD)), side="right")

        # A one-hot product, because the gradient of a gather is a scatter. It gives 0 past the last expert.
        def of_rows(bias_EF: jax.Array, y_PF: jax.Array) -> jax.Array:
            return jax.nn.one_hot(expert_P, len(bias_EF), dtype=y_PF.dtype) @ bias_EF.astype(y_PF.dtype)

        return self._computed(rows_PD, weights_P, lambda rows_PD, kernels: grouped(rows_PD, kernels, sizes_E), of_rows)

    def _computed(
        self,
        rows: jax.Array,
        weights: jax.Array | None,
        products: Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]],
        of_rows: Callable[[jax.Array, jax.Array], jax.Array],
    ) -> jax.Array:
        """Results for rows. `products` multiplies each row by its expert's kernels. `of_rows` returns, for a bias and
        the products of its matrix, the bias of each row's expert."""

        def multiplied(rows: jax.Array, *by: str) -> list[jax.Array]:
            made = products(rows, tuple(self.weights[name][0] for name in by))
            # The same name as in LinearLayer: a remat policy may save them.
            return [checkpoint_name(y, "product") for y in made]

        def weighted(x: jax.Array) -> jax.Array:
            return x if weights is None else (x * weights[..., None]).astype(x.dtype)

        def biased(y: jax.Array, name: str) -> jax.Array:
            bias_EF = self.weights[name][1]
            return y if bias_EF is None else y + of_rows(bias_EF, y)

        *into, _ = names(self.config)
        found = multiplied(rows, *into)
        found = [biased(checkpoint_name(y, "ffn"), name) for y, name in zip(found, into, strict=True)]
        act = (GATED if isinstance(self.config, GLUConfig) else ACTIVATIONS)[self.config.activation]
        # Weighted before the last product, so that the gradient of the weights does not need its result.
        (y,) = multiplied(weighted(self._dropped(act(*found))), "down")
        bias_ED = self.weights["down"][1]
        if bias_ED is None:
            return y
        # Where inner features are sharded, results are partial sums, and the bias must be in one of them only.
        return y + weighted(of_rows(jnp.where(self.inner.index == 0, bias_ED, 0), y))

    def _dropped(self, x: jax.Array) -> jax.Array:
        if self.key is None:
            return x
        left = 1 - self.config.dropout
        return jnp.where(jax.random.bernoulli(self.key, left, x.shape), x / left, 0).astype(x.dtype)
