"""Span corruption: an encoder reads text without some spans, and the decoder generates them.

Legend: S length of the encoder's sequence, T length of the decoder's.
"""

import numpy as np

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import special_tokens
from llm_jax.objectives.pair_objective import PairObjective, pair_row
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class SpanCorruptionConfig(PairObjective):
    """T5's objective (Raffel et al. 2020, arXiv:1910.10683, 3.1.4 and figure 2).

    A row of N = data.sequence_length tokens is one sequence, whatever documents it holds, as in T5. Spans of it are
    replaced by one sentinel each in what the encoder reads; the decoder generates each sentinel with the tokens that it
    replaces, and a last sentinel. Sentinels are the tokens `<extra_id_0>`, `<extra_id_1>`, ... of the tokenizer; those
    that it lacks are the last ids of the model's vocabulary, the first of them the very last, as in T5. Lengths follow
    from N alone, so there is no padding: S = N - corrupted + spans, T = corrupted + spans + 1,
    spans = round(corrupted / mean_span).
    """

    rate: float = 0.15
    """Share of the tokens of a row that are corrupted."""
    mean_span: float = 3.0
    """Mean number of tokens in a span."""

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.rate < 1, f"objective.rate is {self.rate}: it must be above 0 and below 1")
        check(self.mean_span >= 1, f"objective.mean_span is {self.mean_span}: it must be at least 1")

    def corrupted(self, length: int) -> tuple[int, int]:
        """(corrupted tokens, spans) of a row of `length` tokens: `spans_of`."""
        return spans_of(length, self.rate, self.mean_span)

    def lengths(self, length: int) -> tuple[int, int]:
        tokens, spans = self.corrupted(length)
        return length - tokens + spans, tokens + spans + 1

    def check(self, model: ModelConfig, sequence_length: int) -> None:
        """
        Raises:
          ValueError: as `PairObjective`, and for rows of fewer than two tokens.
        """
        check_rows(sequence_length)
        super().check(model, sequence_length)

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return special_tokens.sentinels(self.corrupted(sequence_length)[1] + 1)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "SpanExamples":
        found = special_tokens.ids(self.special_tokens(sequence_length), tokenizer, model.vocab_size or 0)
        return SpanExamples(self, np.array([*found.values()]))


class SpanExamples(Examples):
    """Makes the rows of `pair_row`, without the padding at the end of a row."""

    def __init__(self, config: SpanCorruptionConfig, sentinels: np.ndarray):
        """`sentinels`: their ids in order, one more than a full row has spans."""
        self._config, self._sentinels = config, sentinels

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        length = len(row["tokens"]) - 1
        # The last row of a set may end with padding.
        tokens = row["tokens"][:-1][row["segment_ids"][:-1] != 0]
        source, target = np.zeros((2, 0), np.int32)
        if len(tokens) > 1:
            corrupted = random_spans(len(tokens), *self._config.corrupted(len(tokens)), generator)
            source, target = source_and_target(tokens, corrupted, self._sentinels)
        return pair_row(source, target, self._config.lengths(length))


def check_rows(sequence_length: int) -> None:
    """
    Raises:
      ValueError: for rows of fewer than two tokens.
    """
    check(
        sequence_length > 1,
        f"data.sequence_length is {sequence_length}: at least 2 tokens are required, of which one is corrupted",
    )


def spans_of(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """(corrupted tokens, spans) of a sequence of `length` tokens, one at least and so that a token is left between any
    two spans (`random_spans_noise_mask` of T5's code)."""
    tokens = min(max(round(length * rate), 1), length - 1)
    return tokens, min(max(round(tokens / mean_span), 1), length - tokens)


def random_spans(length: int, tokens: int, spans: int, generator: np.random.Generator) -> np.ndarray:
    """bool [length], the tokens in `spans` spans of `tokens` tokens in all; lengths of spans, and of what lies between
    them, are uniform among all that add up. The first token is never corrupted and the last one always, as in T5."""
    parts = np.stack([_partition(length - tokens, spans, generator), _partition(tokens, spans, generator)], axis=1)
    return np.repeat(np.tile([False, True], spans), parts.reshape(-1))


def source_and_target(
    tokens: np.ndarray, corrupted: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What an encoder reads: the tokens with a sentinel for each run of corrupted ones; and what the decoder generates:
    the corrupted tokens with a sentinel for each run of others, and a last sentinel.

    Args:
      corrupted: bool, as `random_spans` makes it: since the first token is not corrupted, the target begins with a
        sentinel, the same as the first of the source.
      sentinels: ids in order, one more than there are runs of corrupted tokens.
    """
    source, target = _merged(tokens, ~corrupted, sentinels), _merged(tokens, corrupted, sentinels)
    last = sentinels[np.count_nonzero(corrupted[1:] > corrupted[:-1])]
    return source, np.append(target, last).astype(np.int32)


def _merged(tokens: np.ndarray, kept: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """The tokens that are kept, and a sentinel for each run of others."""
    starts = ~kept & np.concatenate([[True], kept[:-1]])
    merged = tokens.copy()
    merged[starts] = sentinels[: np.count_nonzero(starts)]
    return merged[kept | starts]


def _partition(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """int [parts], positive numbers that add up to `total`."""
    # Each set of distinct cuts between the `total` items is one partition, so all partitions are equally likely.
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
