"""Masked language modelling: predict some tokens of a document from all the others.

Legend: B batch, T length.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.checks import check, check_fraction, check_one_of, given
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.boundaries import word_boundaries, word_numbers
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class MaskedLMConfig(TokenObjective):
    """BERT's objective (Devlin et al. 2019, arXiv:1810.04805, 3.1, task 1), with masks that are drawn anew in every
    epoch (Liu et al. 2019, arXiv:1907.11692, 4.1). There is no prediction of the next sentence. Whole words are masked
    as in BERT's later models (github.com/google-research/bert, README.md, 31 May 2019)."""

    needs = Needs("bidirectional")
    predicts_text = False

    rate: float = 0.15
    """Share of the tokens of a sequence that are predicted, at least one and never boundary tokens. It is exact for
    tokens; for whole words it is the mean over sequences."""
    units: str = "tokens"
    """What is chosen: "tokens", or "words" (`tokenizers.boundaries`), of which all tokens are predicted. Every token is
    predicted as often in both."""
    masked: float = 0.8
    """Share of them that the model reads as the mask token."""
    random: float = 0.1
    """Share of them that the model reads as a random token; the rest it reads as they are."""

    def __post_init__(self):
        super().__post_init__()
        check_one_of("objective.units", self.units, ("tokens", "words"))
        check_fraction(masked=self.masked, random=self.random)
        check(0 < self.rate <= 1, f"objective.rate is {self.rate}: it must be above 0 and at most 1")
        check(
            self.masked + self.random <= 1,
            f"objective.masked is {self.masked} and objective.random {self.random}: their sum must not exceed 1",
        )

    def targets(self, sequence_length: int) -> int:
        """Tokens of a sequence that the head scores. Words have any length, so that all tokens are scored."""
        return sequence_length if self.units == "words" else max(1, round(self.rate * sequence_length))

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.MASK,)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "MaskedExamples":
        """
        Raises:
          ValueError: if the vocabulary has no mask token, or whole words are to be chosen from data that are no text.
        """
        size = model.vocab_size or 0
        mask_id = special_tokens.mask_id(tokenizer, size)
        # Random tokens are those that text can have.
        ids = size - 1 if tokenizer is None else tokenizer.vocab_size
        spared = () if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        boundaries = None
        if self.units == "words":
            message = "objective.units is 'words' and the data are no text: set it to 'tokens', or use a CorpusConfig"
            boundaries = word_boundaries(given(tokenizer, message))
        return MaskedExamples(self, mask_id, ids, np.unique(np.array(spared, np.int32)), boundaries)

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        inputs = Inputs(rows["inputs"], SequenceInfo(rows["positions"], rows["segment_ids"]))
        return Batch(inputs, rows["targets"], rows["loss_weights"], rows["at"])


class MaskedExamples(Examples):
    """Adds `inputs` to packed rows, and drops the last token, which only next-token prediction needs. The arrays of
    predicted tokens are `at`, their indices in increasing order, `targets` and `loss_weights`, 0 after the last one."""

    def __init__(
        self, config: MaskedLMConfig, mask_id: int, ids: int, spared: np.ndarray, boundaries_2V: np.ndarray | None
    ):
        """
        Args:
          ids: random tokens are drawn from those below it.
          spared: ids that are never chosen.
          boundaries_2V: `word_boundaries` of the tokenizer; None: tokens are chosen instead of words.
        """
        self._config, self._mask_id, self._ids, self._spared = config, mask_id, ids, spared
        self._boundaries_2V = boundaries_2V

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        row = {name: array[:-1] for name, array in row.items()}
        tokens, config = row["tokens"], self._config
        (eligible,) = np.nonzero((row["segment_ids"] != 0) & ~np.isin(tokens, self._spared))
        if self._boundaries_2V is None or not len(eligible):
            count = max(1, round(config.rate * len(eligible))) if len(eligible) else 0
            chosen = generator.choice(eligible, count, replace=False)
        else:
            words = word_numbers(tokens, row["segment_ids"], self._boundaries_2V)[eligible]
            chosen = eligible[_of_whole_words(words, config.rate * len(eligible), generator)]
        # One number for each chosen token decides between mask token, random token and no change.
        kinds = generator.random(len(chosen))
        inputs = tokens.copy()
        inputs[chosen[kinds < config.masked]] = self._mask_id
        replaced = chosen[(kinds >= config.masked) & (kinds < config.masked + config.random)]
        inputs[replaced] = generator.integers(0, self._ids, len(replaced))
        at, weights = np.zeros(config.targets(len(tokens)), np.int32), np.zeros(config.targets(len(tokens)), np.float32)
        at[: len(chosen)], weights[: len(chosen)] = np.sort(chosen), 1
        return row | {"inputs": inputs, "at": at, "targets": tokens[at], "loss_weights": weights}


def _of_whole_words(words: np.ndarray, count: float, generator: np.random.Generator) -> np.ndarray:
    """bool, whether a token is chosen, from the number of the word of each: words at random, of `count` tokens in the
    mean, one at least."""
    _, word, lengths = np.unique(words, return_inverse=True, return_counts=True)
    order = generator.permutation(len(lengths))
    starts = np.cumsum(lengths[order]) - lengths[order]
    # The word that crosses `count` is taken if a uniform place in it lies below `count`: so the mean is exact.
    taken = np.count_nonzero(starts + generator.random() * lengths[order] < count)
    return np.isin(word, order[: max(1, taken)])
