"""How each parameter divides into matrices, for optimizers that operate on matrices.

Repeated blocks are stored as one array with a leading `layers` axis, those of a block-diagonal matrix with a `blocks`
axis, experts with an `experts` axis. Such an array is a stack, so its number of dimensions does not distinguish a
matrix from a vector. The role determines what it is, and the logical axes determine rows and columns.
"""

import dataclasses
from typing import Any

import jax

from llm_jax.core import trees
from llm_jax.core.checks import check
from llm_jax.layers.roles import ParameterBox, Role, roles_of
from llm_jax.sharding import axes, partition

_STACKING = (axes.LAYERS, axes.BLOCKS, axes.EXPERTS)
_MATRICES = (
    *(Role.MATRIX, Role.EXPERT, Role.ROUTER, Role.READOUT),
    *(Role.EMBEDDING, Role.TABLE, Role.CONVOLUTION),
)


@dataclasses.dataclass(frozen=True)
class MatrixLayout:
    """One parameter: a stack of matrices, a stack of vectors, or a stack of scalars."""

    path: str
    """Its path, such as 'stack/0/mixer/query/kernel'."""
    logical_axes: tuple[str, ...]
    """The logical axis of each of its axes."""
    role: Role

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that index the items of the stack: leading `layers`, `blocks` and `experts`."""
        depth = 0
        while depth < len(self.logical_axes) and self.logical_axes[depth] in _STACKING:
            depth += 1
        return tuple(range(depth))

    @property
    def item(self) -> tuple[int, ...]:
        """The axes of one item of the stack."""
        return tuple(range(len(self.stack), len(self.logical_axes)))

    @property
    def is_matrix(self) -> bool:
        """Whether an item is a matrix or a table, by its role. A bias per head has two axes and is not a matrix."""
        return self.role in _MATRICES

    @property
    def rows(self) -> tuple[int, ...]:
        """The input axes of a matrix: [D, N, H] maps D to N*H, [N, H, D] maps N*H to D."""
        # A projection to the residual stream ends with the model width, and all axes before it are inputs. Any other
        # matrix has one input axis, the first.
        first, last = self.item[0], self.item[-1]
        if self.logical_axes[first] != axes.EMBED and self.logical_axes[last] == axes.EMBED:
            return self.item[:-1]
        return (first,)

    @property
    def columns(self) -> tuple[int, ...]:
        """The output axes of a matrix."""
        return tuple(axis for axis in self.item if axis not in self.rows)


def layouts(parameters: Any) -> Any:
    """The tree of `MatrixLayout`s of a parameter tree.

    Args:
      parameters: nested dict of the parameters' shapes, boxed with their logical axes and roles (`boxed_parameters` of
        models/build.py).

    Raises:
      ValueError: if there are no parameters, if a parameter has no logical axes or role, or if its logical axes do not
        fit its shape and role.
    """
    check(
        bool(jax.tree.leaves(parameters)), "there are no parameters to optimize: build the model before its optimizer"
    )

    def layout(path: tuple, role: Role, logical_axes: tuple[str, ...], box: ParameterBox) -> MatrixLayout:
        name, shape = trees.path_name(path), box.value.shape
        check(
            len(logical_axes) == len(shape),
            f"parameter {name} of shape {shape} has axes {logical_axes}: one logical axis per dimension is required",
        )
        found = MatrixLayout(name, logical_axes, role)
        check(
            len(found.item) >= 2 or not found.is_matrix,
            f"parameter {name} has role {role.value!r} and axes {logical_axes}: a {role.value} requires two or more "
            "axes besides stacked ones; set the role to that of a vector, such as bias or scale",
        )
        return found

    return jax.tree_util.tree_map_with_path(
        layout, roles_of(parameters), partition.logical_axes(parameters), parameters
    )
