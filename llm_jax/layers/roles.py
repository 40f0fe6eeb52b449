"""The role of a parameter: what it is in the computation, said where it is made, beside its logical axes.

Optimizers, and all that treats kinds of parameters differently, read the role and the axes; neither a name nor a
number of dimensions decides. Roles are facts of the model: they are derived from it, and never stored.
"""

import enum
from typing import Any

import flax.linen as nn
import flax.struct
import jax

from llm_jax.core import trees


class Role(enum.StrEnum):
    """What a parameter is. Leading axes that stack alike parameters (`layers`, `blocks`, `experts`) do not count."""

    MATRIX = "matrix"
    """A linear map between hidden features, or the blocks of a block-diagonal one: [inputs..., outputs...]."""
    EXPERT = "expert"
    """A linear map of each expert: a token reads those of the experts that it visits."""
    ROUTER = "router"
    """A linear map from the stream to scores of experts or of their slots, used in float32."""
    READOUT = "readout"
    """A linear map from the stream to a number of scores that does not grow with the model: of tokens, of classes, a
    gate's one."""
    EMBEDDING = "embedding"
    """One vector a token: [vocab, features]. A tied head reads it too."""
    TABLE = "table"
    """Vectors or scores that are looked up by a position, a distance or a token type."""
    CONVOLUTION = "convolution"
    """Taps of a depthwise convolution along the sequence: [taps, channels]."""
    NORM = "norm"
    """Scale of a normalisation, from one, or from zero where one is added."""
    SCALE = "scale"
    """Factor of something else than a normalised vector: a skip connection, cosines before a softmax."""
    BIAS = "bias"
    """Summand of features or of scores; that of a normalisation, and the score of an attention sink, too."""
    BALANCE = "balance"
    """Summand of the scores by which experts are chosen; their load moves it, and no gradient does."""
    RATE = "rate"
    """What the decay of a recurrence is computed from, one number a feature or head."""
    VECTOR = "vector"
    """Features that are an activation by themselves, such as the start of XLNet's query stream."""


class ParameterBox(nn.LogicallyPartitioned, kw_only=True, eq=False):
    """A parameter with its logical axes, `names`, and its role, while it is made or described. Transformations that
    add an axis to the parameter add a name, and keep the role."""

    role: Role = flax.struct.field(pytree_node=False)


def unboxed(parameters: Any) -> Any:
    """The tree without its boxes. Unlike `nn.unbox` it lays nothing out under a mesh: leaves may be shapes."""
    return jax.tree.map(lambda box: box.value, parameters, is_leaf=_is_box)


def roles_of(parameters: Any) -> Any:
    """The tree of roles of parameters with their boxes on (`boxed_parameters` of models/build.py).

    Raises:
      ValueError: for a parameter that was given no role where it is made.
    """

    def read(path: tuple, leaf: Any) -> Role:
        if not isinstance(leaf, ParameterBox):
            raise ValueError(
                f"parameter {trees.path_name(path)} has no role: give `self.param` an initialiser of "
                "`annotated(init, axes, role)` of layers/initialisers.py"
            )
        return leaf.role

    return jax.tree_util.tree_map_with_path(read, parameters, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.Partitioned)
