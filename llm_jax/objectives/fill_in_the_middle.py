"""Fill-in-the-middle: a decoder predicts a part of a document from what stands before and after it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llm_jax.core.checks import check_fraction
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


class Sentinels(NamedTuple):
    """Ids of <PRE>, <SUF> and <MID>, which precede the prefix, the suffix and the middle."""

    prefix: int
    suffix: int
    middle: int


_SENTINELS = (special_tokens.PREFIX, special_tokens.SUFFIX, special_tokens.MIDDLE)


@configclass
class FillInTheMiddleConfig(TokenObjective):
    """Next-token prediction on documents of which some are reordered (Bavarian et al. 2022, arXiv:2207.14255, 3).

    A reordered document is cut into prefix, middle and suffix and is one of

        <PRE> prefix <SUF> suffix <MID> middle     PSM, section 3
        <PRE> <SUF> suffix <MID> prefix middle     SPM, section 3.1, in the variant 2 of appendix D

    between its own bos and eos, where it has them; eos is the paper's <EOT>. Both cuts are uniform over the places
    between tokens, so that a part may be empty. The paper cuts between characters, and so within tokens as well. Here
    documents are tokenised before, and a model that is trained so may fail to continue a prefix that ends within a
    token.

    All tokens are predicted, sentinels too. Documents are reordered before packing (document-level in section 4.4), so
    a row may begin or end within one. Which documents are reordered is the same in all epochs; cuts and orders differ.
    """

    needs = Needs("causal")
    predicts_text = False

    rate: float = 0.5
    """Share of the documents that are reordered."""
    spm: float = 0.5
    """Share of them in the order SPM; the rest are PSM."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(rate=self.rate, spm=self.spm)

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return _SENTINELS

    def examples(
        self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int
    ) -> "FillInTheMiddleExamples":
        found = special_tokens.ids(_SENTINELS, tokenizer, model.vocab_size or 0)
        return FillInTheMiddleExamples(self, Sentinels(*found.values()), tokenizer)

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        return Batch.next_tokens(rows)


class FillInTheMiddleExamples(Examples):
    """Reorders documents of more than two tokens, which have text beside bos and eos."""

    def __init__(self, config: FillInTheMiddleConfig, sentinels: Sentinels, tokenizer: Tokenizer | None):
        """
        Args:
          tokenizer: None: no token is a boundary token.
        """
        self._config, self._sentinels = config, sentinels
        self._bos, self._eos = (None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)

    def lengths(self, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return lengths + len(self._sentinels) * self._reordered(lengths, draws)

    def document(self, tokens: np.ndarray, draw: float, generator: np.random.Generator) -> Row:
        if not self._reordered(len(tokens), draw):
            return {"tokens": tokens}
        start, stop = int(tokens[0] == self._bos), len(tokens) - int(tokens[-1] == self._eos)
        cuts = start + np.sort(generator.integers(0, stop - start, size=2, endpoint=True))
        first, prefix, middle, suffix, last = np.split(tokens, [start, *cuts, stop])
        before, after, between = (np.array([one], tokens.dtype) for one in self._sentinels)
        if generator.random() < self._config.spm:
            parts = (before, after, suffix, between, prefix, middle)
        else:
            parts = (before, prefix, after, suffix, between, middle)
        return {"tokens": np.concatenate([first, *parts, last])}

    def _reordered(self, lengths: np.ndarray | int, draws: np.ndarray | float) -> Any:
        """Whether documents of these lengths and draws are reordered."""
        return (np.asarray(draws) < self._config.rate) & (np.asarray(lengths) > 2)
