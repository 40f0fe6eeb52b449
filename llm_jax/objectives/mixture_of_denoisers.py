"""A mixture of denoisers: span corruptions of several rates and lengths, each with a mode token.

Legend: S length of the encoder's sequence, T length of the decoder's.
"""

import numpy as np

from llm_jax.core.checks import check, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import special_tokens
from llm_jax.objectives.pair_objective import PairObjective, pair_row
from llm_jax.objectives.span_corruption import check_rows, random_spans, source_and_target, spans_of
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class Denoiser:
    """A span corruption of UL2, as its paper describes all denoisers: by mean length, rate and number of spans."""

    mode: str
    """Name of the mode token that the encoder reads first. Denoisers of one mode share it."""
    rate: float
    """Share of the tokens of a row that are corrupted."""
    mean_span: float | None
    """Mean number of tokens in a span; None: a single span at the end of the row, so that the decoder continues a
    prefix."""
    weight: float = 1.0
    """How often it is drawn, relative to the other denoisers."""

    def __post_init__(self):
        check(0 < self.rate < 1, f"rate of denoiser {self.mode!r} is {self.rate}: it must be above 0 and below 1")
        check(
            self.mean_span is None or self.mean_span >= 1,
            f"mean_span of denoiser {self.mode!r} is {self.mean_span}: it must be at least 1, or None",
        )
        check_positive(**{f"weight of denoiser {self.mode!r}": self.weight})

    def corrupted(self, length: int) -> tuple[int, int]:
        """(corrupted tokens, spans) of `length` tokens."""
        # Spans end with the last token, so that a single one is the suffix.
        return spans_of(length, self.rate, length if self.mean_span is None else self.mean_span)


@configclass
class MixtureOfDenoisersConfig(PairObjective):
    """UL2's objective (Tay et al. 2022, arXiv:2205.05131, 3.1); the default denoisers are those of its table 1, each as
    often as another.

    Each row of N = data.sequence_length tokens is corrupted by one denoiser, which its generator draws. The encoder
    reads the denoiser's mode token and the row with a sentinel for each span; the decoder generates each sentinel with
    the tokens that it replaces, and a last sentinel (`SpanCorruptionConfig`). S and T hold the longest sequences that
    any of the denoisers makes; those of the others are padded.

    Mode tokens are `<mode_R>`, `<mode_S>` and `<mode_X>`; sentinels are those of `SpanCorruptionConfig`.
    """

    denoisers: tuple[Denoiser, ...] = (
        Denoiser("R", 0.15, 3.0),
        Denoiser("R", 0.15, 8.0),
        Denoiser("S", 0.25, None),
        Denoiser("X", 0.5, 3.0),
        Denoiser("X", 0.5, 8.0),
        Denoiser("X", 0.15, 64.0),
        Denoiser("X", 0.5, 64.0),
    )
    """R are regular, S sequential and X extreme ones."""

    def __post_init__(self):
        super().__post_init__()
        check(len(self.denoisers) > 0, "objective.denoisers is empty: at least one Denoiser is required")

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the mode tokens."""
        return tuple(dict.fromkeys(denoiser.mode for denoiser in self.denoisers))

    def lengths(self, length: int) -> tuple[int, int]:
        counts = [denoiser.corrupted(length) for denoiser in self.denoisers]
        source = max(length - tokens + spans for tokens, spans in counts)
        return 1 + source, max(tokens + spans for tokens, spans in counts) + 1

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: as `PairObjective`, and for rows of fewer than two tokens.
        """
        check_rows(sequence_length)
        super().check(model, sequence_length)

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        spans = max(denoiser.corrupted(sequence_length)[1] for denoiser in self.denoisers)
        return (*map(_mode_token, self.modes), *special_tokens.sentinels(spans + 1))

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "MixtureExamples":
        found = special_tokens.ids(self.special_tokens(sequence_length), tokenizer, model.vocab_size or 0)
        modes = {mode: found.pop(_mode_token(mode)) for mode in self.modes}
        return MixtureExamples(self, modes, np.array([*found.values()]))


class MixtureExamples(Examples):
    """Makes the rows of `pair_row`, without the padding at the end of a row."""

    def __init__(self, config: MixtureOfDenoisersConfig, mode_ids: dict[str, int], sentinels: np.ndarray):
        self._config, self._mode_ids, self._sentinels = config, mode_ids, sentinels
        weights = np.array([denoiser.weight for denoiser in config.denoisers])
        self._shares = weights / weights.sum()

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        config, length = self._config, len(row["tokens"]) - 1
        # The last row of a set may end with padding.
        tokens = row["tokens"][:-1][row["segment_ids"][:-1] != 0]
        source, target = np.zeros((2, 0), np.int32)
        if len(tokens) > 1:
            denoiser = config.denoisers[generator.choice(len(config.denoisers), p=self._shares)]
            corrupted = random_spans(len(tokens), *denoiser.corrupted(len(tokens)), generator)
            source, target = source_and_target(tokens, corrupted, self._sentinels)
            source = np.append(np.int32(self._mode_ids[denoiser.mode]), source)
        return pair_row(source, target, config.lengths(length))


def _mode_token(mode: str) -> str:
    return f"<mode_{mode}>"
