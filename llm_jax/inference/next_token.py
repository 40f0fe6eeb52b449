"""Samples the next token from its logits.

Legend: B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp

from llm_jax.inference.sampling import SamplingConfig


def sample(logits_BV: jax.Array, key: jax.Array, config: SamplingConfig, seen_BV: jax.Array | None = None) -> jax.Array:
    """Chooses the next token of each sequence.

    Args:
      logits_BV: logits of the next token, of any float dtype. They are cast to float32.
      key: random key, unused at temperature 0.
      config: static.
      seen_BV: bool, whether a token is in the prompt or the continuation. Required only for a repetition penalty.

    Returns:
      Tokens [B] int32. At temperature 0, the first of equally likely tokens.

    Raises:
      ValueError: for a repetition penalty without `seen_BV`, or if its shape is not that of the logits.
    """
    if config.temperature == 0:
        return jnp.argmax(_penalised(logits_BV, config, seen_BV), axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, process(logits_BV, config, seen_BV), axis=-1).astype(jnp.int32)


def process(logits_BV: jax.Array, config: SamplingConfig, seen_BV: jax.Array | None = None) -> jax.Array:
    """Logits [B, V] float32 of the distribution from which `sample` draws; -inf for tokens with probability 0.

    At least one token of each sequence is kept. Arguments and errors are those of `sample`.
    """
    x_BV = _penalised(logits_BV, config, seen_BV)
    if config.temperature == 0:
        return _keep(x_BV, jax.nn.one_hot(jnp.argmax(x_BV, axis=-1), x_BV.shape[-1], dtype=bool))
    x_BV /= config.temperature
    if config.top_k is not None:
        x_BV = _keep_top_k(x_BV, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        x_BV = _keep_top_p(x_BV, config.top_p)
    if config.min_p is not None:
        x_BV = _keep_min_p(x_BV, config.min_p)
    return x_BV


def _penalised(logits_BV: jax.Array, config: SamplingConfig, seen_BV: jax.Array | None) -> jax.Array:
    x_BV = logits_BV.astype(jnp.float32)
    penalty = config.repetition_penalty
    if penalty == 1:
        return x_BV
    if seen_BV is None or seen_BV.shape != x_BV.shape:
        raise ValueError(
            f"repetition_penalty is {penalty} and seen_BV has shape {None if seen_BV is None else seen_BV.shape}: it "
            f"must have the shape {x_BV.shape} of the logits; pass a bool for each token, or set "
            "repetition_penalty=1.0"
        )
    return jnp.where(seen_BV, jnp.where(x_BV < 0, x_BV * penalty, x_BV / penalty), x_BV)


def _keep_top_k(x_BV: jax.Array, top_k: int) -> jax.Array:
    kth_B1 = jax.lax.top_k(x_BV, min(top_k, x_BV.shape[-1]))[0][:, -1:]
    return _keep(x_BV, x_BV >= kth_B1)


def _keep_top_p(x_BV: jax.Array, top_p: float) -> jax.Array:
    # Ascending order, with equal tokens in reverse order, so that the first of them is kept, as at temperature 0.
    order_BV = jnp.argsort(x_BV, axis=-1, descending=True)[:, ::-1]
    cumulative_BV = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(x_BV, order_BV, axis=-1)), axis=-1)
    # From the least likely token on, those are dropped that together have at most 1 - p. The most likely one always
    # stays, whatever is lost to rounding.
    kept_BV = (cumulative_BV > 1 - top_p).at[:, -1].set(True)
    return _keep(x_BV, jnp.put_along_axis(jnp.zeros_like(kept_BV), order_BV, kept_BV, axis=-1, inplace=False))


def _keep_min_p(x_BV: jax.Array, min_p: float) -> jax.Array:
    probabilities_BV = jax.nn.softmax(x_BV)
    return _keep(x_BV, probabilities_BV >= min_p * jnp.max(probabilities_BV, axis=-1, keepdims=True))


def _keep(x_BV: jax.Array, kept_BV: jax.Array) -> jax.Array:
    return jnp.where(kept_BV, x_BV, -jnp.inf)
