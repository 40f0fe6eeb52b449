"""The loss of objectives with one target for each token.

Legend: B batch, T length.
"""

from typing import Any

import jax

from llm_jax.core.metrics import Metrics
from llm_jax.models.build import applied
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.losses import balance, cross_entropy


def token_loss(
    model: Any,
    params: Any,
    batch: Batch[jax.Array],
    key: jax.Array | None,
    whole: Metrics | None,
    chunks: int = 1,
    z_loss: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Summed cross-entropy of the batch's targets, and metrics: 'loss' (nats), 'accuracy', 'z_loss' where weighted, and
    those of MoE layers (`losses.balance`).

    Args:
      key: for dropout; None where nothing is dropped.
      whole: metrics of the batch of which this one is a part, 'balance_loss' at least: a loss of a whole batch, such as
        that of the load of experts, is computed over that batch. None: this is all of it.
      chunks, z_loss: as `losses.cross_entropy`.
    """
    rngs = None if key is None else {"dropout": key}
    output = applied(model, params, batch.inputs, method="hidden", rngs=rngs)

    def unembed(head: Any, hidden_BCD: jax.Array) -> jax.Array:
        return applied(model, head, hidden_BCD, method="unembed")

    head, weights_BT = model.unembed_parameters(params), batch.loss_weights_BT
    total, metrics = cross_entropy(unembed, head, output.hidden_BTD, batch.targets_BT, weights_BT, chunks, z_loss)
    balance_loss, routing = balance(output.aux, weights_BT, whole)
    return total + balance_loss, metrics | routing
