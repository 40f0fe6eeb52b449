"""Cross-entropy that never holds the logits of a whole batch.

Legend: B batch, T length, D model width, V vocabulary, C length of a chunk.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.metrics import Metrics, Ratio, metric_of
from llm_jax.layers.ffn.routing_statistics import BalanceLoss, RoutingAux, RoutingMetric
from llm_jax.sharding import axes, partition

Unembed = Callable[[Any, jax.Array], jax.Array]
"""(parameters, hidden [B, C, D]) -> float32 logits [B, C, V]."""


def cross_entropy(
    unembed: Unembed,
    parameters: Any,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    chunks: int = 1,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, Ratio]]:
    """Sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), and the metrics of its parts.

    With `label_smoothing` e the target distribution has 1 - e at the target and e evenly on the whole vocabulary
    (Szegedy et al. 2016, arXiv:1512.00567, 7; Vaswani et al. 2017, 5.4); 'loss' is the loss without it and
    'smoothed_loss' the one that is minimised.

    The length is cut into `chunks`. Gradients are computed along with the loss, chunk by chunk, so that logits are
    neither kept for the backward pass nor computed again: peak memory is one chunk's logits, and the matrix products
    are those of the plain form. z_loss is that of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5).

    Raises:
      ValueError: if `chunks` does not divide T, or the number of tokens of a sequence that a device holds.
    """
    length, shards = targets_BT.shape[1], partition.parts(axes.LENGTH)
    if length % (chunks * shards):
        where = f", divided over {shards} devices" if shards > 1 else ""
        raise ValueError(
            f"the loss has {chunks} chunks and sequences have {length} tokens{where}: the number of chunks must "
            "divide the length"
        )
    regularisers = (z_loss, label_smoothing)
    return _chunked(unembed, chunks, regularisers, parameters, hidden_BTD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(unembed, chunks, regularisers, parameters, hidden_BTD, targets_BT, weights_BT):
    def add(sums, chunk):
        return jax.tree.map(jnp.add, sums, _chunk_loss(unembed, regularisers, parameters, *chunk)), None

    parts = _split((hidden_BTD, targets_BT, weights_BT), chunks)
    sums = jax.eval_shape(
        functools.partial(_chunk_loss, unembed, regularisers, parameters), *jax.tree.map(lambda x: x[0], parts)
    )
    return jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums), parts)[0]


def _forward(unembed, chunks, regularisers, parameters, hidden_BTD, targets_BT, weights_BT):
    # The gradient of the parameters is carried from chunk to chunk, in float32 because it is a sum over all tokens.
    # That of the hidden states is returned chunk by chunk.
    loss = jax.value_and_grad(functools.partial(_chunk_loss, unembed, regularisers), argnums=(0, 1), has_aux=True)

    def add(carry, chunk):
        sums, gradient = carry
        value, (chunk_gradient, hidden_gradient) = loss(parameters, *chunk)
        return jax.tree.map(jnp.add, (sums, gradient), (value, chunk_gradient)), hidden_gradient

    parts = _split((hidden_BTD, targets_BT, weights_BT), chunks)
    first = jax.tree.map(lambda x: x[0], parts)
    sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda c: loss(parameters, *c)[0], first))
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), parameters)
    (sums, gradient), hidden_gradients = jax.lax.scan(add, (sums, zeros), parts)
    gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, parameters)
    return sums, (gradient, _join(hidden_gradients))


def _backward(unembed, chunks, regularisers, residuals, cotangents):
    # The loss is a scalar, so its cotangent is a factor of the gradients that the forward pass has computed. Metrics
    # are not differentiated: their cotangents are ignored.
    scale = cotangents[0]
    gradient, hidden_gradient = jax.tree.map(lambda g: g * scale.astype(g.dtype), residuals)
    return gradient, hidden_gradient, None, None


_chunked.defvjp(_forward, _backward)


def _chunk_loss(unembed, regularisers, parameters, hidden_BCD, targets_BC, weights_BC):
    # -log p(target) = log Z - logit of the target.
    logits_BCV = unembed(parameters, hidden_BCD)
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    if partition.parts(axes.VOCAB) > 1:
        # A sum, since for a look-up the scores would be brought together from all devices.
        is_target_BCV = targets_BC[..., None] == jnp.arange(logits_BCV.shape[-1])
        target_logits_BC = jnp.sum(jnp.where(is_target_BCV, logits_BCV, 0), axis=-1)
    else:
        target_logits_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    z_loss, label_smoothing = regularisers
    loss = Ratio.of(log_z_BC - target_logits_BC, weights_BC)
    metrics = {"loss": loss, "accuracy": Ratio.of(_is_argmax(logits_BCV, targets_BC, target_logits_BC), weights_BC)}
    total = loss.total
    if label_smoothing:
        even = Ratio.of(log_z_BC - jnp.mean(logits_BCV, axis=-1), weights_BC)
        total = (1 - label_smoothing) * total + label_smoothing * even.total
        metrics["smoothed_loss"] = Ratio(total, loss.count)
    if z_loss:
        metrics["z_loss"] = Ratio.of(jnp.square(log_z_BC), weights_BC)
        total += z_loss * metrics["z_loss"].total
    return total, metrics


def _is_argmax(logits_BCV: jax.Array, targets_BC: jax.Array, target_logits_BC: jax.Array) -> jax.Array:
    """Whether the target is the first of the largest scores, as argmax has it. One reduction without an index; of equal
    scores, as rounding and untrained models give them, only one is the prediction."""
    scores_BC1, places_V = target_logits_BC[..., None], jnp.arange(logits_BCV.shape[-1])
    below_BCV = (logits_BCV < scores_BC1) | ((logits_BCV == scores_BC1) & (places_V >= targets_BC[..., None]))
    return jnp.all(below_BCV, axis=-1)


def _split(arrays: Any, chunks: int) -> Any:
    """[B, T, ...] -> [chunks, B, T / chunks, ...]. A chunk has tokens of every device's shard of the sequence."""

    def cut(x: jax.Array) -> jax.Array:
        shards = partition.parts(axes.LENGTH)
        # [B, devices, chunks, tokens, ...] -> [chunks, B, devices, tokens, ...] -> [chunks, B, devices * tokens, ...]:
        # every device has its part of every chunk, so that none waits and no token is sent.
        cut = jnp.moveaxis(x.reshape(x.shape[0], shards, chunks, -1, *x.shape[2:]), 2, 0)
        return cut.reshape(*cut.shape[:2], -1, *x.shape[2:])

    return jax.tree.map(cut, arrays)


def _join(x: jax.Array) -> jax.Array:
    """[chunks, B, T / chunks, D] -> [B, T, D], the inverse of `_split`."""
    chunks, batch, _, width = x.shape
    x = jnp.moveaxis(x.reshape(chunks, batch, partition.parts(axes.LENGTH), -1, width), 0, 2)
    return x.reshape(batch, -1, width)


def balance(
    aux: dict[str, RoutingAux], weights_BT: jax.Array, whole: Metrics | None = None
) -> tuple[jax.Array, Metrics]:
    """Balance losses of all layers of experts, each row's and the batch's as often as there are targets, to be added to
    a sum over targets; and metrics: 'balance_loss', and 'experts', what the layers did.

    Args:
      whole: the metric 'balance_loss' of the batch of which these rows are a part; None: they are all of it.
    """
    if not aux:
        return jnp.zeros(()), {}
    # A sequence's losses count once for each of its targets: the step divides the whole sum by the number of targets.
    count_B = jnp.sum(weights_BT, axis=1, dtype=jnp.float32)
    rows = jnp.sum(sum((jnp.sum(layer.loss_B, axis=0) for layer in aux.values()), jnp.zeros(())) * count_B)
    own = BalanceLoss(rows, jnp.sum(count_B), {path: layer.batch for path, layer in aux.items()})
    return rows + own.part_of(own if whole is None else metric_of(whole, "balance_loss", BalanceLoss)), {
        "balance_loss": own,
        "experts": RoutingMetric({path: layer.statistics for path, layer in aux.items()}),
    }
