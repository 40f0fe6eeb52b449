"""Muon's update direction for stacks of kernels of any number of axes (Jordan 2024, github.com/KellerJordan/Muon)."""

import math
from typing import Any

import jax
import optax

from llm_jax.core import trees
from llm_jax.layers.roles import Role
from llm_jax.optim.matrix_layouts import MatrixLayout


def is_orthogonalised(layout: MatrixLayout) -> bool:
    """Whether Muon applies to a parameter: linear maps between hidden features, but not lookup tables, routers and
    readouts."""
    return layout.role in (Role.MATRIX, Role.EXPERT)


def scale_by_muon(
    layouts: Any, momentum: float, nesterov: bool, iterations: int, matched_rms: float | None
) -> optax.GradientTransformation:
    """Momentum, orthogonalised for each matrix by Newton-Schulz iteration.

    Args:
      layouts: tree of `MatrixLayout`s. Updates may omit parameters (optax.MaskedNode); the others must be matrices.
      momentum: decay of the mean of gradients.
      nesterov: whether to use Nesterov momentum.
      iterations: number of Newton-Schulz iterations.
      matched_rms: root mean square of the result for a full-rank matrix; None: sqrt(max(1, outputs / inputs)) times an
        orthogonal matrix.
    """
    by_path = {layout.path: layout for layout in jax.tree.leaves(layouts)}

    def numbers(updates: Any) -> Any:
        def one(path: tuple, _: jax.Array) -> optax.contrib.MuonDimensionNumbers:
            layout = by_path[trees.path_name(path)]
            # Axes that are neither rows nor columns index matrices, each of which is orthogonalised by itself.
            return optax.contrib.MuonDimensionNumbers(layout.rows, layout.columns)

        return jax.tree_util.tree_map_with_path(one, updates)

    def rescale(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x * _scale(by_path[trees.path_name(path)], x.shape, matched_rms), updates
        )

    orthogonalise = optax.contrib.scale_by_muon(
        ns_steps=iterations, beta=momentum, nesterov=nesterov, weight_dimension_numbers=numbers
    )
    return optax.chain(orthogonalise, optax.stateless(rescale))


def _scale(layout: MatrixLayout, shape: tuple[int, ...], matched_rms: float | None) -> float:
    # A matrix with orthonormal rows or columns has the root mean square 1 / sqrt(max(inputs, outputs)).
    inputs, outputs = (math.prod(shape[axis] for axis in axes) for axes in (layout.rows, layout.columns))
    if matched_rms is None:
        return math.sqrt(max(1, outputs / inputs))
    return matched_rms * math.sqrt(max(inputs, outputs))
