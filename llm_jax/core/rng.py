"""Random keys, each a pure function of (seed, name, step), so that no result depends on earlier draws."""

import zlib

import jax
import numpy as np


def key(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
    """A jax key for `name` at `step`. `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), step)


def generator(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """A numpy generator for `name` at `step`, for the data pipeline."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), step])
