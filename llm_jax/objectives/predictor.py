"""What objectives predict whose models write no text: labels, tags, spans, numbers and embeddings."""

import abc
from collections.abc import Mapping
from typing import Any

from llm_jax.data.examples import Row
from llm_jax.tokenizers.tokenizer import Tokenizer


class Predictor(abc.ABC):
    """Base of objectives on records that predict a part of a record from the rest of it."""

    @abc.abstractmethod
    def answered(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record with any valid answer, so that examples can be made of records without one."""

    @abc.abstractmethod
    def scores(self, model: Any, params: Any, batch: Any) -> Any:
        """Arrays [B, ...] of a batch, on the device. The answers in the batch must not change them."""

    @abc.abstractmethod
    def prediction(self, scores: Any, row: Row, tokenizer: Tokenizer) -> dict[str, Any]:
        """What is predicted for a row, as JSON, from its scores (numpy arrays) and the row itself."""
