"""Denoising: an encoder reads a text with noise, and the decoder generates the text without it.

Legend: N tokens of a row, S length of the encoder's sequence, L slots of it before deletion, K spans.
"""

import itertools

import numpy as np

from llm_jax.core.checks import check, check_fraction, check_one_of, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.models.config import ModelConfig
from llm_jax.objectives import special_tokens
from llm_jax.objectives.pair_objective import PairObjective, pair_row
from llm_jax.tokenizers.boundaries import sentence_ends
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class DenoisingConfig(PairObjective):
    """BART's objective (Lewis et al. 2020, arXiv:1910.13461, 2.2) with any combination of its noise; the defaults are
    those of its large model (section 5.1): 30% of the tokens infilled, all sentences permuted.

    Two objectives of Raffel et al. 2020 (arXiv:1910.10683, 3.3.1 and table 3) are of this kind: "BERT-style" is
    `bert_style()` and "Deshuffling" is `deshuffling()`.

    A row of N = data.sequence_length tokens is one sequence, whatever documents it holds, as in T5. Tokens are permuted
    within each document, and boundary tokens stay where they are. Then shares of the tokens are infilled, masked and
    deleted, none twice, so that S follows from N alone. The decoder generates the N tokens.
    """

    infilled: float = 0.3
    """Share of the tokens in spans that the encoder reads as one mask token each. There are round(tokens / mean_span)
    spans, at places drawn uniformly. Their lengths are those of a Poisson distribution, given their sum; a span of
    length 0 inserts a mask token. As in BART's code the first and last tokens of a row are infilled less often."""
    mean_span: float = 3.0
    """Mean number of tokens in a span."""
    masked: float = 0.0
    """Share of the tokens that are masked one by one."""
    random: float = 0.0
    """Share of these that the encoder reads as random tokens instead of mask tokens."""
    deleted: float = 0.0
    """Share of the tokens that the encoder does not read, nor anything in their place."""
    permuted: str = "sentences"
    """What is permuted in each document: "nothing", "sentences" or "tokens"."""
    rotated: bool = False
    """Whether each document begins with a token of it that is drawn uniformly, and what was before it stands at its
    end."""
    sentence_ends: tuple[int, ...] | None = None
    """Ids that end a sentence; None: those of the tokenizer (`tokenizers.boundaries.sentence_ends`)."""
    start_id: int | None = None
    """Id that the decoder reads first; None: the tokenizer's eos, as in BART, or 0 without a tokenizer."""

    @classmethod
    def bert_style(cls, rate: float = 0.15) -> "DenoisingConfig":
        """T5's "BERT-style" objective: of the corrupted tokens 90% are masked and 10% random, and the decoder generates
        the whole text."""
        return cls(infilled=0.0, masked=rate, random=0.1, permuted="nothing", start_id=0)

    @classmethod
    def deshuffling(cls) -> "DenoisingConfig":
        """T5's "Deshuffling" objective: the decoder generates the text from its shuffled tokens."""
        return cls(infilled=0.0, permuted="tokens", start_id=0)

    def __post_init__(self):
        super().__post_init__()
        check_fraction(infilled=self.infilled, masked=self.masked, random=self.random, deleted=self.deleted)
        rates = self.infilled + self.masked + self.deleted
        check(
            rates < 1,
            f"objective.infilled is {self.infilled}, masked {self.masked} and deleted {self.deleted}: their sum must "
            "be below 1, so that something is left to read",
        )
        check_positive(mean_span=self.mean_span)
        check_one_of("objective.permuted", self.permuted, ("nothing", "sentences", "tokens"))
        check(
            rates > 0 or self.permuted != "nothing" or self.rotated,
            "objective DenoisingConfig has no noise: set infilled, masked or deleted above 0, or permuted, or rotated",
        )

    def counts(self, length: int) -> tuple[int, int, int, int]:
        """(spans, infilled, masked, deleted tokens) of `length` tokens: the shares up to rounding, and one token at
        least is left."""
        shares = itertools.accumulate((self.infilled, self.masked, self.deleted))
        first, second, third = (min(round(share * length), length - 1) for share in shares)
        spans = max(round(first / self.mean_span), 1) if first else 0
        return spans, first, second - first, third - second

    def lengths(self, length: int) -> tuple[int, int]:
        return max(map(self._source_length, range(1, length + 1))), length

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.MASK,)

    def decoder_start(self, tokenizer: Tokenizer | None) -> int:
        """`start_id`; without one eos, as in BART."""
        if self.start_id is not None:
            return self.start_id
        return 0 if tokenizer is None else tokenizer.eos_id

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "DenoisingExamples":
        """
        Raises:
          ValueError: if the vocabulary has no mask token, `start_id` is no id of the model's, or it is not known what
            ends a sentence.
        """
        size, start_id = model.vocab_size or 0, self.decoder_start(tokenizer)
        check(
            0 <= start_id < size,
            f"objective.start_id is {start_id} and model.vocab_size {size}: it must be an id of the model's vocabulary",
        )
        mask_id = special_tokens.mask_id(tokenizer, size)
        ends = np.array(self.sentence_ends or (), np.int32)
        if self.permuted == "sentences" and self.sentence_ends is None and tokenizer is not None:
            ends = sentence_ends(tokenizer)
        check(
            self.permuted != "sentences" or len(ends) > 0,
            "objective.permuted is 'sentences', and no id is known to end one: set objective.sentence_ends, or "
            "permuted to 'nothing' or 'tokens'",
        )
        # Random tokens are those that text can have.
        ids = size - 1 if tokenizer is None else tokenizer.vocab_size
        fixed = () if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return DenoisingExamples(self, self.lengths(sequence_length), mask_id, start_id, ids, np.array(fixed), ends)

    def _source_length(self, length: int) -> int:
        spans, infilled, _, deleted = self.counts(length)
        return length - infilled + spans - deleted


class DenoisingExamples(Examples):
    """Makes the rows of `pair_row`, without the padding at the end of a row."""

    def __init__(
        self,
        config: DenoisingConfig,
        lengths: tuple[int, int],
        mask_id: int,
        start_id: int,
        ids: int,
        fixed: np.ndarray,
        sentence_ends: np.ndarray,
    ):
        """
        Args:
          ids: random tokens are drawn from those below it.
          fixed: ids that are not moved.
          sentence_ends: ids that end a sentence.
        """
        self._config, self._lengths, self._mask_id, self._start_id = config, lengths, mask_id, start_id
        self._ids, self._fixed, self._sentence_ends = ids, fixed, sentence_ends

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        documents = row["segment_ids"][:-1]
        real = documents != 0
        tokens = row["tokens"][:-1][real]
        source = self._masked(self._moved(tokens, documents[real], generator), generator) if len(tokens) else tokens
        return pair_row(source, tokens, self._lengths, self._start_id)

    def _moved(self, tokens: np.ndarray, documents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The tokens after permutation and rotation of each document."""
        config = self._config
        (places,) = np.nonzero(~np.isin(tokens, self._fixed))
        text, documents = tokens[places], documents[places]
        if config.permuted != "nothing":
            sentences = config.permuted == "sentences"
            ends = np.isin(text, self._sentence_ends) if sentences else np.ones(len(text), bool)
            text = text[_permuted(documents, ends, generator)]
        if config.rotated:
            text = text[_rotated(documents, generator)]
        moved = tokens.copy()
        moved[places] = text
        return moved

    def _masked(self, tokens: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The tokens after infilling, masking and deletion."""
        config, length = self._config, len(tokens)
        spans, infilled, masked, deleted = config.counts(length)
        widths_L = _slots(length, spans, infilled, generator)
        is_span_L = widths_L >= 0
        ends_L = np.cumsum(np.where(is_span_L, widths_L, 1))
        source_L = np.where(is_span_L, self._mask_id, tokens[ends_L - 1])
        chosen = generator.choice(np.flatnonzero(~is_span_L), masked + deleted, replace=False)
        source_L[chosen[:masked]] = self._mask_id
        drawn = chosen[:masked][generator.random(masked) < config.random]
        source_L[drawn] = generator.integers(0, self._ids, len(drawn))
        return np.delete(source_L, chosen[masked:])


def _slots(length: int, spans: int, tokens: int, generator: np.random.Generator) -> np.ndarray:
    """int [L], what stands at each place of a sequence of `length` tokens of which `tokens` are in `spans` spans: the
    length of a span, or -1 for a token. All orders of spans and tokens are equally likely."""
    slots = np.full(length - tokens + spans, -1)
    # Independent Poisson numbers of one mean are multinomial, given their sum.
    lengths = np.bincount(generator.integers(0, max(spans, 1), tokens), minlength=spans)
    slots[generator.choice(len(slots), spans, replace=False)] = lengths[:spans]
    return slots


def _permuted(documents: np.ndarray, ends: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """int [n], the places of the tokens of sentences that are permuted within each document.

    Args:
      ends: bool [n], whether a token is the last of a sentence.
    """
    begins = np.ones(len(ends), bool)
    begins[1:] = ends[:-1] | (documents[1:] != documents[:-1])
    sentence = np.cumsum(begins) - 1
    return np.lexsort((generator.random(np.count_nonzero(begins))[sentence], documents))


def _rotated(documents: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """int [n], the places of the tokens of documents that are rotated to begin with a random one of their tokens."""
    _, first, document, length = np.unique(documents, return_index=True, return_inverse=True, return_counts=True)
    shift = generator.integers(0, length)[document]
    return first[document] + (np.arange(len(documents)) - first[document] + shift) % length[document]
