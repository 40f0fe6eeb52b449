"""Functions that every device runs on its own part of arrays, for what the compiler cannot divide itself."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

Words = tuple[str | None, ...]
"""A logical word per axis of an array, or None for an axis that is whole everywhere."""


def per_device(function: Callable[..., jax.Array], inputs: Sequence[Words], output: Words) -> Callable[..., jax.Array]:
    """`function`, run by each device on its part of arrays that are laid out by logical words.

    Outside of `partition.activate`, or where a function is run per device already, it is `function` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names or mesh.manual_axes:
        return function
    specs = tuple(nn.logical_to_mesh_axes(words) for words in inputs)
    return jax.shard_map(function, in_specs=specs, out_specs=nn.logical_to_mesh_axes(output), check_vma=False)
