"""Multi-token prediction: predict the next token, and by further modules of the model the tokens after it.

Legend: B batch, T length, D model width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from llm_jax.core.checks import check_not_negative
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.models import count
from llm_jax.models.build import applied
from llm_jax.models.config import ModelConfig
from llm_jax.models.multi_token_heads import following
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.losses import balance
from llm_jax.objectives.objective import NO_MODELS, Models, Needs
from llm_jax.objectives.token_objective import TokenObjective


@configclass
class MultiTokenConfig(TokenObjective):
    """Prediction of the next n tokens, n being `tokens` of the model's `multi_token`: by independent heads (Gloeckle et
    al. 2024, arXiv:2404.19737, 2) or by a chain (DeepSeek-AI 2024, arXiv:2412.19437, 2.2).

    The loss of the next token is that of `CausalLMConfig`. The losses of the others are added with a weight. Each is a
    sum over the tokens that have such a target in their own document, and all are divided by the number of next tokens,
    as in DeepSeek-V3's eq. 24.
    """

    needs = Needs("causal", multi_token=True)

    weight: float = 0.3
    """Weight of the loss of each token after the next one. DeepSeek-V3 has lambda / (n - 1) with lambda 0.3, later 0.1
    (eq. 25 and 4.2; n is 2), Gloeckle et al. 1."""

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(weight=self.weight)

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return Batch.next_tokens(rows)

    def loss(
        self,
        model: Any,
        params: Any,
        batch: Batch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
        models: Models = NO_MODELS,
    ) -> tuple[jax.Array, Metrics]:
        """See `TokenObjective.loss`; its metrics are those of the next token. Those of the others have their distance
        at the end: 'loss_2' (nats) and 'accuracy_2' of the token after the next one, and so on."""
        rngs = None if key is None else {"dropout": key}
        output, ahead = applied(model, params, batch.inputs, method="multi_token_hidden", rngs=rngs)
        total, metrics = self.cross_entropy(model, params, output.hidden_BTD, batch)
        for places, hidden_BTD in enumerate(ahead, start=1):
            loss, found = self.cross_entropy(model, params, hidden_BTD, later(batch, places))
            total += self.weight * loss
            metrics |= {f"{name}_{places + 1}": metric for name, metric in found.items()}
        balance_loss, routing = balance(output.aux, batch.loss_weights_BT, whole)
        return total + balance_loss, metrics | routing

    def training_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """See `Objective`. All modules and their logits are counted."""
        ahead = sum(count.multi_token_flops(stack, sequence_length) for stack in model.stacks)
        return super().training_flops(model, sequence_length) + 3 * ahead


def later(batch: Batch[jax.Array], places: int) -> Batch[jax.Array]:
    """The batch whose targets are `places` later. They have weight 0 where they are in another document or after the
    end of the row."""
    weights_BT = batch.loss_weights_BT
    for place in range(1, places + 1):
        # A target is in the document of the input if all targets from the next token to it are.
        weights_BT = weights_BT * following(batch.loss_weights_BT, place)
    return dataclasses.replace(batch, targets_BT=following(batch.targets_BT, places), loss_weights_BT=weights_BT)
