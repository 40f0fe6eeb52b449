"""What training minimises, whatever the model."""

from typing import Any, Protocol

import jax

from llm_jax.core.metrics import Metrics
from llm_jax.data.batch import Batch


class Objective(Protocol):
    """A loss of the models that it is for."""

    def loss(
        self,
        model: Any,
        params: Any,
        batch: Batch,
        key: jax.Array | None = None,
        whole: Metrics | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Summed loss over the batch's targets, and metrics, of which 'loss' is a `Ratio`.

        Args:
          key: for dropout; None where nothing is dropped.
          whole: metrics of the batch of which this one is a part; None: this is all of it.
        """
        ...
