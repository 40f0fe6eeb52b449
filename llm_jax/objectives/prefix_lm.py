"""Prefix language modelling: predict the rest of every document from a prefix that is read in both directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class PrefixLMConfig(TokenObjective):
    """Next-token prediction after a prefix (Raffel et al. 2020, arXiv:1910.10683, 3.2.1 and 3.2.3; Liu et al. 2018,
    arXiv:1801.10198).

    Every document of a row is split at a uniformly random token into a prefix and a target, one token each at least.
    The tokens of the prefix attend to the whole prefix. Only tokens of the target are predicted, and each reads the
    prefix and the target before it.
    """

    needs = Needs("causal")
    predicts_text = False

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: for a model that is no decoder, or whose mixers have another mask than `PrefixCausal`.
        """
        super().check(model, sequence_length)
        check(
            model.stacks[-1].prefixed,
            "objective PrefixLMConfig requires the mask PrefixCausal() in every mixer, and not all mixers of the model "
            "have it: use `model.with_mask(PrefixCausal())`, or CausalLMConfig",
        )

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "PrefixExamples":
        return PrefixExamples()

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        batch, prefix = Batch.next_tokens(rows), rows["prefix"]
        sequence = SequenceInfo(rows["positions"][:, :-1], rows["segment_ids"][:, :-1], prefix_BT=prefix[:, :-1])
        # The last token of the prefix predicts the first of the target.
        weights_BT = batch.loss_weights_BT * ~prefix[:, 1:]
        return Batch(Inputs(batch.inputs.tokens_BT, sequence), batch.targets_BT, weights_BT)


class PrefixExamples(Examples):
    """Adds `prefix` to packed rows, bool."""

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        segments = row["segment_ids"]
        # A document of n tokens has a prefix of 1 to n - 1 tokens, each length as likely. One token is no example.
        lengths = generator.integers(1, np.maximum(np.bincount(segments), 2))
        return row | {"prefix": (row["positions"] < lengths[segments]) & (segments != 0)}
