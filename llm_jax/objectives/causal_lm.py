"""Causal language modelling: predict every token from those before it in its document."""

from collections.abc import Mapping
from typing import Any

import jax

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.models.config import ModelConfig
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs, Objective
from llm_jax.objectives.token_loss import token_loss


@configclass
class CausalLMConfig(Objective):
    """Next-token prediction (Radford et al. 2018)."""

    needs = Needs("causal")

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits near normalised; PaLM used 1e-4."""
    chunks: int = 1
    """Chunks of a sequence in which the logits are computed; more of them need less memory."""

    def __post_init__(self):
        check_not_negative(z_loss=self.z_loss)
        check_positive(chunks=self.chunks)

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is not a causal decoder, scores no vocabulary or reads an encoder; for chunks
            that do not divide the sequence.
        """
        super().check(model, sequence_length)
        check(
            sequence_length % self.chunks == 0,
            f"objective.chunks is {self.chunks} and data.sequence_length is {sequence_length}: sequences are cut into "
            "that many equal chunks; change one of them",
        )

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return Batch.next_tokens(rows)

    def loss(
        self,
        model: Any,
        params: Any,
        batch: Batch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """As `token_loss`."""
        return token_loss(model, params, batch, key, whole, self.chunks, self.z_loss)
