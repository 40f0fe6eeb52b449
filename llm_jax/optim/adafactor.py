"""Adafactor's update direction (Shazeer and Stern 2018, arXiv:1804.04235), for stacks of matrices.

optax's own version factors over the two largest dimensions of an array and computes root mean squares over the whole
array, so the update of a layer would depend on the layers with which it is stacked. Here every statistic is computed
per matrix. On a single matrix the two are equal.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.optim.matrix_layouts import MatrixLayout

# epsilon_1 and epsilon_2 of the paper.
_SQUARE_FLOOR = 1e-30
_PARAMETER_FLOOR = 1e-3


@flax.struct.dataclass
class AdafactorState:
    """The optimizer state: second moments. Each tree has the structure of the parameters, with an optax.MaskedNode for
    parameters that it does not cover."""

    count: jax.Array
    """Number of steps so far, int32 []."""
    row: Any
    """Means over a factored matrix's columns; the dimensions averaged over have size 1."""
    column: Any
    """Means over a factored matrix's rows; the dimensions averaged over have size 1."""
    full: Any
    """Second moments of parameters that are not factored."""


# The steps of the paper's algorithm for weight matrices: moving averages of the squared gradient's means over rows and
# columns; the rank-one estimate of the second moment from them, which is exact for a squared gradient of rank one;
# clipping of the update; a step relative to the size of the parameter.
def scale_by_adafactor(
    layouts: Any, exponent: float, clip_threshold: float | None, min_factored_size: int, scale_by_parameter: bool
) -> optax.GradientTransformation:
    """Divides gradients by the root of their factored second moments.

    Args:
      layouts: tree of the parameters' `MatrixLayout`s.
      exponent: the decay of the moments is 1 - t ** -exponent at step t.
      clip_threshold: maximum root mean square of the direction of one matrix or vector; None: no maximum.
      min_factored_size: second moments of matrices with fewer rows or columns are not factored.
      scale_by_parameter: whether to multiply by the root mean square of the matrix or vector, at least 1e-3.
    """

    def init(params: Any) -> Any:
        def zeros(averaged: Any, factored: bool) -> Any:
            def make(layout: MatrixLayout, x: jax.Array) -> Any:
                if _is_factored(layout, x.shape, min_factored_size) != factored:
                    return optax.MaskedNode()
                return jnp.zeros([1 if axis in averaged(layout) else size for axis, size in enumerate(x.shape)])

            return jax.tree.map(make, layouts, params)

        return AdafactorState(
            jnp.zeros([], jnp.int32),
            row=zeros(lambda layout: layout.columns, factored=True),
            column=zeros(lambda layout: layout.rows, factored=True),
            full=zeros(lambda layout: (), factored=False),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decay = 1 - (state.count + 1).astype(jnp.float32) ** -exponent

        def follow(moment: Any, grad: jax.Array) -> Any:
            if isinstance(moment, optax.MaskedNode):
                return moment
            averaged = [axis for axis, size in enumerate(moment.shape) if size != grad.shape[axis]]
            square = jnp.mean(jnp.square(grad) + _SQUARE_FLOOR, axis=averaged, keepdims=True)
            return decay * moment + (1 - decay) * square

        row, column, full = (
            jax.tree.map(lambda grad, moment: follow(moment, grad), updates, moments)
            for moments in (state.row, state.column, state.full)
        )

        def direct(layout: MatrixLayout, grad: jax.Array, row: Any, column: Any, full: Any, param: jax.Array) -> Any:
            if isinstance(full, optax.MaskedNode):
                mean = jnp.mean(row, axis=layout.item, keepdims=True)  # the second moment is row * column / mean
                x = grad * jax.lax.rsqrt(row / mean) * jax.lax.rsqrt(column)
            else:
                x = grad * jax.lax.rsqrt(full)
            if clip_threshold is not None:
                x /= jnp.maximum(1, _root_mean_square(layout, x) / clip_threshold)  # update clipping
            if scale_by_parameter:
                x *= jnp.maximum(_root_mean_square(layout, param), _PARAMETER_FLOOR)  # relative step
            return x

        directions = jax.tree.map(direct, layouts, updates, row, column, full, params)
        return directions, AdafactorState(jnp.asarray(optax.safe_increment(state.count)), row, column, full)

    return optax.GradientTransformation(init, update)


def _is_factored(layout: MatrixLayout, shape: tuple[int, ...], min_size: int) -> bool:
    def size(axes: tuple[int, ...]) -> int:
        return math.prod(shape[axis] for axis in axes)

    return layout.is_matrix and min(size(layout.rows), size(layout.columns)) >= min_size


def _root_mean_square(layout: MatrixLayout, x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=layout.item, keepdims=True))
