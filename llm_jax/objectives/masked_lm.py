"""Masked language modelling: predict some tokens of a document from all the others.

Legend: B batch, T length.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.checks import check, check_fraction
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class MaskedLMConfig(TokenObjective):
    """BERT's objective (Devlin et al. 2019, arXiv:1810.04805, 3.1, task 1), with masks that are drawn anew in every
    epoch (Liu et al. 2019, arXiv:1907.11692, 4.1). There is no prediction of the next sentence."""

    needs = Needs("bidirectional")
    predicts_text = False

    rate: float = 0.15
    """Share of the tokens of a sequence that are predicted: that many exactly, one at least; never boundary tokens."""
    masked: float = 0.8
    """Share of them that the model reads as the mask token."""
    random: float = 0.1
    """Share of them that the model reads as a random token; the rest it reads as they are."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(masked=self.masked, random=self.random)
        check(0 < self.rate <= 1, f"objective.rate is {self.rate}: it must be above 0 and at most 1")
        check(
            self.masked + self.random <= 1,
            f"objective.masked is {self.masked} and objective.random {self.random}: their sum must not exceed 1",
        )

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.MASK,)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "MaskedExamples":
        size = model.vocab_size or 0
        mask_id = special_tokens.ids((special_tokens.MASK,), tokenizer, size)[special_tokens.MASK]
        # Random tokens are those that text can have.
        words = size - 1 if tokenizer is None else tokenizer.vocab_size
        spared = () if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return MaskedExamples(self, mask_id, words, np.unique(np.array(spared, np.int32)))

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        inputs = Inputs(rows["inputs"], SequenceInfo(rows["positions"], rows["segment_ids"]))
        return Batch(inputs, rows["tokens"], rows["loss_weights"])


class MaskedExamples(Examples):
    """Adds `inputs` and `loss_weights` to packed rows, and drops the last token, which only next-token prediction
    needs."""

    def __init__(self, config: MaskedLMConfig, mask_id: int, words: int, spared: np.ndarray):
        """
        Args:
          words: random tokens are drawn from the ids below it.
          spared: ids that are never chosen.
        """
        self._config, self._mask_id, self._words, self._spared = config, mask_id, words, spared

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        row = {name: array[:-1] for name, array in row.items()}
        tokens, config = row["tokens"], self._config
        (eligible,) = np.nonzero((row["segment_ids"] != 0) & ~np.isin(tokens, self._spared))
        count = max(1, round(config.rate * len(eligible))) if len(eligible) else 0
        chosen = generator.choice(eligible, count, replace=False)
        # One number for each chosen token decides between mask token, random token and no change.
        kinds = generator.random(count)
        inputs, weights = tokens.copy(), np.zeros(len(tokens), np.float32)
        inputs[chosen[kinds < config.masked]] = self._mask_id
        replaced = chosen[(kinds >= config.masked) & (kinds < config.masked + config.random)]
        inputs[replaced] = generator.integers(0, self._words, len(replaced))
        weights[chosen] = 1
        return row | {"inputs": inputs, "loss_weights": weights}
