"""Training states for the tests of this folder: an optax state, a masked leaf, three dtypes, an absent average."""

from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.record import Identity


@flax.struct.dataclass
class TrainState:
    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def optimizer() -> optax.GradientTransformation:
    adamw = optax.adamw(optax.linear_schedule(1.0, 0.1, 10))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.masked(adamw, {"embed": False, "stack": True}))


def train_state(seed: int = 0, width: int = 64, ema: bool = False) -> TrainState:
    """Every array is random, so that no two of them and no two seeds are alike."""
    draw = np.random.default_rng(seed)
    params = {
        "embed": jnp.asarray(draw.normal(size=(32, width)), jnp.bfloat16),
        "stack": {"0": {"kernel": jnp.asarray(draw.normal(size=(width, width)), jnp.float32), "bias": jnp.ones(width)}},
    }
    state = TrainState(jnp.int32(seed), params, optimizer().init(params), params if ema else None)
    return jax.tree.map(lambda x: x if x.ndim == 0 else jnp.asarray(draw.normal(size=x.shape), x.dtype), state)


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_identical(left: Any, right: Any) -> None:
    """Same types of nodes, same dtypes, same bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert isinstance(a, jax.Array) and (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def checkpoints(directory: Path, tokenizer_digest: str = "0123456789abcdef", **config: Any) -> Checkpoints:
    return Checkpoints(directory, CheckpointConfig(**config), Identity("= an experiment\n", tokenizer_digest))


def saved(directory: Path, *steps: int, **config: Any) -> None:
    """Saves `train_state(step)` at each of `steps`, and closes."""
    with checkpoints(directory, **config) as opened:
        for step in steps:
            opened.save(step, train_state(step), {"position": step}, {"tokens": 10 * step})
