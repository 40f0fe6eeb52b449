"""Config of beam search."""

from typing import Literal

from llm_jax.core.checks import check, check_divides, check_not_negative
from llm_jax.core.configclass import configclass


@configclass
class BeamConfig:
    """How beam search ranks and keeps hypotheses. Fields and defaults are those of transformers' `generate`.

    A hypothesis is a sequence that has ended, by eos or because it has all new tokens. Its score is the sum of the
    log-probabilities of its n new tokens, eos included, divided by ((k + n) / (k + 1)) ** length_penalty, where k is
    `length_offset`.
    """

    beams: int = 4
    """Number of sequences that the search continues, and of hypotheses that it keeps; 1: greedy decoding."""
    length_penalty: float = 1.0
    """Exponent of the length in the score: above 0 long hypotheses are preferred, 0: log-probabilities."""
    length_offset: float = 0.0
    """k of the score. 0: n ** length_penalty, as in transformers. 5: Wu et al. 2016 (arXiv:1609.08144, equation 14,
    without the coverage penalty), which Vaswani et al. 2017 use with 4 beams and length_penalty 0.6."""
    early_stopping: bool | Literal["never"] = False
    """When the search of a prompt ends before it has all new tokens. True: as soon as there are `beams` hypotheses.
    False: if, in addition, the best unfinished sequence would not be kept with the score that it has now. This is a
    heuristic for a positive length_penalty, with which a score may still rise. "never": only when no continuation can
    be kept."""
    n_best: int = 1
    """Number of hypotheses to return for each prompt. There may be fewer if the vocabulary is tiny."""
    groups: int = 1
    """Number of groups into which the beams are divided; each keeps hypotheses of its own (Vijayakumar et al. 2016,
    arXiv:1610.02424, algorithm 1)."""
    diversity_penalty: float = 0.0
    """Reduces the score of a token by this much for each beam of an earlier group that has chosen it in the same step
    (there, section 4, Hamming diversity). Scores contain it."""

    def __post_init__(self):
        check(self.beams >= 1, f"beams is {self.beams}: it must be at least 1")
        check(self.groups >= 1, f"groups is {self.groups}: it must be at least 1")
        check_divides(self.groups, self.beams, "groups", "beams")
        check(
            1 <= self.n_best <= self.beams,
            f"n_best is {self.n_best} and beams is {self.beams}: n_best must be at least 1 and at most beams; "
            "increase beams",
        )
        check_not_negative(length_offset=self.length_offset, diversity_penalty=self.diversity_penalty)
        check(
            self.groups > 1 or self.diversity_penalty == 0,
            f"diversity_penalty is {self.diversity_penalty} and groups is 1: it applies between groups; set groups to "
            "a divisor of beams greater than 1",
        )
