"""Random keys: every one is folded from (seed, step, name), so that nothing depends on what was drawn before."""

import zlib

import jax
import numpy as np


def key(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """A jax key for `name` at `step`; `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)


def generator(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """The same idea for numpy, for use in the data pipeline."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), step])
