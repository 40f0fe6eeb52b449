"""What training minimises, whatever the model."""

import abc
from typing import Any

import jax
import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.core.metrics import Metrics
from llm_jax.data.batch import Batch
from llm_jax.models.config import ModelConfig


@configclass
class Objective(abc.ABC):
    """A loss, and the models that it is for. Derive a configclass from it to train with a loss of your own."""

    @abc.abstractmethod
    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """The objective can train the model on sequences of this length.

        Raises:
          ValueError: if it cannot, saying which model it could.
        """

    def example(self, row: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, np.ndarray]:
        """What becomes of a packed row before it is batched, by a generator of the row's own."""
        return row

    def batch(self, rows: dict[str, np.ndarray]) -> Batch[np.ndarray]:
        """What the model is given for stacked rows [B, T + 1]."""
        return Batch.from_rows(rows)

    @abc.abstractmethod
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
