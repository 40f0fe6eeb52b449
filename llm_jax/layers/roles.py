"""The role of a parameter in the computation, declared with its logical axes where the parameter is created.

Optimizers, and all code that treats kinds of parameters differently, read the role and the axes, not the name or the
number of dimensions. Roles follow from the model and are never stored.
"""

import enum
from typing import Any

import flax.linen as nn
import flax.struct
import jax

from llm_jax.core import trees


class Role(enum.StrEnum):
    """The kind of a parameter. Leading axes that stack similar parameters (`layers`, `blocks`, `experts`) are not
    counted in the shapes below."""

    MATRIX = "matrix"
    """A linear map between hidden features, or the blocks of a block-diagonal one: [inputs..., outputs...]."""
    EXPERT = "expert"
    """A linear map per expert, used only for the tokens routed to the expert."""
    ROUTER = "router"
    """A linear map from the residual stream to scores of experts or of their slots, used in float32."""
    READOUT = "readout"
    """A linear map from the residual stream to a number of outputs that does not grow with the model: logits of tokens
    or classes, or one gate."""
    EMBEDDING = "embedding"
    """One vector per token id: [vocab, features]. A tied head reads it too."""
    TABLE = "table"
    """Vectors or scores that are looked up by a position, a distance or a token type."""
    CONVOLUTION = "convolution"
    """Taps of a depthwise convolution along the sequence: [taps, channels]."""
    NORM = "norm"
    """Scale of a normalisation, initialised to one, or to zero if one is added to it."""
    SCALE = "scale"
    """Factor of something other than a normalised vector: a skip connection, or cosines before a softmax."""
    BIAS = "bias"
    """Bias of features or of scores, including the bias of a normalisation and the score of an attention sink."""
    BALANCE = "balance"
    """Bias of the scores by which experts are chosen. It is updated by their load, not by a gradient."""
    RATE = "rate"
    """Parameter of the decay of a recurrence, one number per feature or head."""
    VECTOR = "vector"
    """Features used directly as an activation, such as the start of XLNet's query stream."""


class ParameterBox(nn.LogicallyPartitioned, kw_only=True, eq=False):
    """A parameter with its logical axes, `names`, and its role. Flax transformations that add an axis to the parameter
    add a name and keep the role."""

    role: Role = flax.struct.field(pytree_node=False)


def unboxed(parameters: Any) -> Any:
    """The tree without its boxes. Unlike `nn.unbox` it applies no sharding constraint, so leaves may be shapes."""
    return jax.tree.map(lambda box: box.value, parameters, is_leaf=_is_box)


def roles_of(parameters: Any) -> Any:
    """The tree of roles of boxed parameters (`boxed_parameters` of models/build.py).

    Raises:
      ValueError: if a parameter was created without a role.
    """

    def read(path: tuple, leaf: Any) -> Role:
        if not isinstance(leaf, ParameterBox):
            raise ValueError(
                f"parameter {trees.path_name(path)} has no role: initialise it with `annotated(init, axes, role)` of "
                "layers/initialisers.py"
            )
        return leaf.role

    return jax.tree_util.tree_map_with_path(read, parameters, is_leaf=_is_box)


def _is_box(node: Any) -> bool:
    return isinstance(node, nn.Partitioned)
