"""The train step of google-deepmind/nanodo, from a checkout of it, as a contender.

Used are nanodo.model (DoConfig, TransformerDo) and nanodo.optimizer (get_optimizer), which need jax, flax and optax.
nanodo.loss and nanodo.train import TensorFlow: their few lines for loss and update are repeated here, without the
statistics that nanodo logs, which makes nanodo a little faster than it is.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from models import Size, check_parameters


class _Settings(dict):
    """What nanodo expects of a config: attributes and `get`."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def nanodo_step(checkout: Path, size: Size, dtype: str, tokens: np.ndarray) -> Callable[[], object]:
    """One update of nanodo's model, a GPT-2 without biases, on tokens [B, T + 1].

    Raises:
      ValueError: if `checkout` holds no nanodo.
    """
    model, optimizer = _parts(checkout, size, dtype)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, size.length), jnp.int32))["params"])()
    check_parameters("gpt2", size, sum(leaf.size for leaf in jax.tree.leaves(params)), tolerance=0.03)

    def update(state: tuple, inputs_BT: jax.Array, targets_BT: jax.Array) -> tuple:
        def loss(params: Any) -> jax.Array:
            logits_BTV = model.apply({"params": params}, inputs_BT)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT).mean()

        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    step = jax.jit(update, donate_argnums=0)
    state = (params, jax.jit(optimizer.init)(params))
    inputs_BT, targets_BT = jax.device_put((tokens[:, :-1], tokens[:, 1:]))

    def run() -> object:
        nonlocal state
        state, value = step(state, inputs_BT, targets_BT)
        return jax.block_until_ready((state, value))

    return run


def _parts(checkout: Path, size: Size, dtype: str) -> tuple[Any, Any]:
    if not (checkout / "nanodo" / "model.py").is_file():
        raise ValueError(f"{checkout} holds no nanodo/model.py: give the folder of a clone of google-deepmind/nanodo")
    sys.path.insert(0, str(checkout))
    from nanodo import model, optimizer

    shape = {
        "D": size.width,
        "H": size.heads,
        "L": size.length,
        "N": size.layers,
        "V": size.vocab_size,
        "F": 4 * size.width,
    }
    transformer = model.TransformerDo(model.DoConfig(**shape, dtype=jnp.dtype(dtype), fsdp_enabled=False))
    settings = _Settings(
        decay_type="constant_without_warmup",
        init_learning_rate=0.0,
        peak_learning_rate=1e-4,
        warmup_steps=0,
        weight_decay=0.1,
        b2=0.95,
        eps=1e-8,
        clip_by_global_norm=1.0,
    )
    return transformer, optimizer.get_optimizer(settings)
