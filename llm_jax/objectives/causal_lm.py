"""Causal language modelling: predict every token from those before it in its document.

Legend: B batch, T length.
"""

from typing import Any

import jax

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.data.batch import Batch
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import applied
from llm_jax.models.config import LOOK_BACK, ModelConfig, TransformerConfig
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.losses import balance, cross_entropy
from llm_jax.objectives.objective import Objective


@configclass
class CausalLMConfig(Objective):
    """Next-token prediction (Radford et al. 2018)."""

    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits near normalised; PaLM used 1e-4."""
    chunks: int = 1
    """Pieces in which the logits of a row are computed; more of them need less memory."""

    def __post_init__(self):
        check_not_negative(z_loss=self.z_loss)
        check_positive(chunks=self.chunks)

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is not causal, scores no vocabulary or reads an encoder; for chunks that do not
            divide the sequence.
        """
        if not isinstance(model, TransformerConfig):
            raise ValueError(f"objective CausalLMConfig trains decoders and model is of type {type(model).__name__}")
        check(
            model.causal,
            "objective CausalLMConfig predicts tokens from those before them, and "
            f"{' and '.join(model.looking_ahead)} of the model shows them later ones: {LOOK_BACK}; there is no other "
            "objective yet, so encoders can be loaded and converted, not trained",
        )
        check(
            isinstance(model.head, HeadConfig | TiedHead),
            "objective CausalLMConfig needs scores of the vocabulary and the model's head is "
            f"{type(model.head).__name__}: set it to HeadConfig or TiedHead",
        )
        check(
            not model.reads_memory,
            "objective CausalLMConfig has no row for an encoder, and blocks of the model have `cross` attention: leave "
            "it out",
        )
        check(
            sequence_length % self.chunks == 0,
            f"objective.chunks is {self.chunks} and data.sequence_length is {sequence_length}: rows are cut into that "
            "many equal chunks; change one of them",
        )

    def loss(
        self,
        model: Transformer,
        params: Any,
        batch: Batch[jax.Array],
        key: jax.Array | None = None,
        whole: Metrics | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Summed loss over the batch's targets, and metrics: 'loss' (nats), 'accuracy', 'z_loss' where weighted, and
        those of layers of experts (`balance`).

        Args:
          key: for dropout; None where nothing shall be dropped.
          whole: metrics of the batch of which this one is a part, 'balance_loss' at least: what is a loss of a whole
            batch, as that of a load, is one of that batch. None: this is all of it.
        """
        rngs = None if key is None else {"dropout": key}
        placement = SequenceInfo(batch.positions_BT, batch.segment_ids_BT)
        output = applied(model, params, batch.tokens_BT, placement, method="hidden", rngs=rngs)
        head = {name: params[name] for name in model.unembed_parameters}

        def unembed(head: Any, hidden_BCD: jax.Array) -> jax.Array:
            return applied(model, head, hidden_BCD, method="unembed")

        total, metrics = cross_entropy(
            unembed, head, output.hidden_BTD, batch.targets_BT, batch.loss_weights_BT, self.chunks, self.z_loss
        )
        added, told = balance(output.reports, batch.loss_weights_BT, whole)
        return total + added, metrics | told
