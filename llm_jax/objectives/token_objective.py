"""The loss of objectives with one target for each token.

Legend: B batch, T length of the targets, C length of a chunk, D model width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics, Ratio
from llm_jax.models import count
from llm_jax.models.build import applied
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.losses import balance, cross_entropy
from llm_jax.objectives.objective import NO_MODELS, Models, Objective
from llm_jax.sharding import axes, partition


@configclass
class TokenObjective(Objective):
    """Cross-entropy of the targets of a `Batch`. Derive a configclass from it that makes the batch."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits near normalised; PaLM used 1e-4."""
    chunks: int = 1
    """Chunks of a sequence in which the logits are computed; more of them need less memory."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread evenly over the vocabulary; 0.1 in Vaswani et al. 2017, 5.4."""

    def __post_init__(self):
        check_not_negative(z_loss=self.z_loss)
        check_positive(chunks=self.chunks)
        check(
            0 <= self.label_smoothing < 1,
            f"objective.label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1",
        )

    def targets(self, sequence_length: int) -> int:
        """T, the number of targets of a row of the data."""
        return sequence_length

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that does not meet `needs`; for chunks that do not divide the targets.
        """
        super().check(model, sequence_length)
        targets = self.targets(sequence_length)
        check(
            targets % self.chunks == 0,
            f"objective.chunks is {self.chunks} and data.sequence_length is {sequence_length}, which gives sequences "
            f"of {targets} targets: chunks must divide the number of targets; change one of them",
        )

    def loss(
        self,
        model: Any,
        params: Any,
        batch: Batch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """Summed cross-entropy of the batch's targets, and metrics: 'loss' (nats), 'accuracy', 'z_loss' and
        'smoothed_loss' if they are minimised, and those of MoE layers (`losses.balance`).

        Args:
          key: for dropout; None where nothing is dropped.
          whole: metrics of the batch of which this one is a part, 'balance_loss' at least: a loss of a whole batch,
            such as that of the load of experts, is computed over that batch. None: this is all of it.
          models: not used.
        """
        rngs = None if key is None else {"dropout": key}
        # Without logits: `cross_entropy` computes those of one chunk at a time.
        output = applied(model, params, batch.inputs, method="hidden", rngs=rngs)
        total, metrics = self.cross_entropy(model, params, output.hidden_BTD, batch)
        balance_loss, routing = balance(output.aux, batch.loss_weights_BT, whole)
        return total + balance_loss, metrics | routing

    def cross_entropy(
        self, model: Any, params: Any, hidden_BTD: jax.Array, batch: Batch[jax.Array]
    ) -> tuple[jax.Array, dict[str, Ratio]]:
        """`losses.cross_entropy` of the batch's targets, from the hidden states of its inputs."""

        def unembed(head: Any, hidden_BCD: jax.Array) -> jax.Array:
            return applied(model, head, hidden_BCD, method="unembed")

        return cross_entropy(
            unembed,
            model.unembed_parameters(params),
            *scored(hidden_BTD, batch),
            self.chunks,
            self.z_loss,
            self.label_smoothing,
        )

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`. The head is counted for the targets only."""
        flops, targets = count.training_flops(model, sequence_length), self.targets(sequence_length)
        if targets == sequence_length or not isinstance(model, TransformerConfig):
            return flops
        body = count.training_flops(dataclasses.replace(model, head=None), sequence_length)
        return body + (flops - body) * targets / sequence_length


def gathers() -> bool:
    """Whether the hidden states of predicted tokens are gathered before they are scored; otherwise all are scored.

    Where devices share a sequence, each scores its own tokens, so that no hidden state is sent. Where they share the
    vocabulary and parameters are fully sharded too, XLA (jaxlib 0.10) computes wrong gradients of gathered states.
    """
    return partition.parts(axes.LENGTH) == 1 and partition.parts(axes.VOCAB) == 1


def scored(hidden_BTD: jax.Array, batch: Batch[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states of the tokens that have targets, the targets, and their weights."""
    targets_BK, weights_BK = batch.targets_BT, batch.loss_weights_BT
    if batch.at_BT is None:
        return hidden_BTD[:, -targets_BK.shape[1] :], targets_BK, weights_BK
    if gathers():
        return jnp.take_along_axis(hidden_BTD, batch.at_BT[..., None], axis=1), targets_BK, weights_BK
    rows_B1, shape = jnp.arange(len(targets_BK))[:, None], hidden_BTD.shape[:2]
    targets_BK = jnp.where(weights_BK == 0, 0, targets_BK)
    targets_BT = jnp.zeros(shape, targets_BK.dtype).at[rows_B1, batch.at_BT].add(targets_BK)
    weights_BT = jnp.zeros(shape, weights_BK.dtype).at[rows_B1, batch.at_BT].add(weights_BK)
    return hidden_BTD, targets_BT, weights_BT
