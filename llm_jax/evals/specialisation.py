"""Which experts process which kinds of tokens: whether routing depends on classes of tokens that a reader would name.

Legend: V vocabulary, B batch, T length, L layers, C classes of tokens, E experts.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check
from llm_jax.layers.tap import tapped
from llm_jax.models.build import Model
from llm_jax.objectives.batch import Batch
from llm_jax.tokenizers.tokenizer import Tokenizer

CLASSES = ("whitespace", "punctuation", "digit", "word start", "word continuation")
_WHITESPACE, _PUNCTUATION, _DIGIT, _START, _CONTINUATION = range(len(CLASSES))
_NONE = -1


@dataclasses.dataclass(frozen=True)
class TokenClasses:
    """The class of each piece of a vocabulary."""

    kinds_V: np.ndarray
    """int: class, by the first character that is not a space; -1 for a special id, which has no text."""
    joins_V: np.ndarray
    """bool: whether it continues a word if the preceding piece ends with a word character."""
    ends_V: np.ndarray
    """bool: whether its last character is a word character."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Decodes every piece after another one, so that decoding does not drop its first space."""
        before = tokenizer.encode("a")[-1:]
        first = len(tokenizer.decode(before))
        pieces = [tokenizer.decode([*before, token])[first:] for token in range(tokenizer.vocab_size)]
        return cls(
            np.array([_kind(piece) for piece in pieces]),
            np.array([_is_word(piece[:1]) for piece in pieces]),
            np.array([_is_word(piece[-1:]) for piece in pieces]),
        )

    def rows(self, tokens_BT: np.ndarray) -> np.ndarray:
        """The class of every token, int [B, T]; -1 for tokens without text."""
        kinds_BT = self.kinds_V[tokens_BT]
        inside_BT = np.zeros(tokens_BT.shape, bool)
        inside_BT[:, 1:] = self.ends_V[tokens_BT[:, :-1]] & self.joins_V[tokens_BT[:, 1:]]
        return np.where((kinds_BT == _START) & inside_BT, _CONTINUATION, kinds_BT)


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """How often tokens of each class were routed to each expert."""

    counts: dict[str, np.ndarray]
    """float64 [L, C, E], by the path of a block in the parameters, such as 'stack/segment_0/block_1'."""

    def layers(self, path: str) -> Iterator[tuple[np.ndarray, float]]:
        """For each layer, the fraction of each class's visits that each expert has [C, E] (0 for a class without
        tokens), and the mutual information of class and expert in bits."""
        for counts_CE in self.counts[path]:
            share_CE = counts_CE / np.maximum(counts_CE.sum(axis=1, keepdims=True), 1)
            yield share_CE, mutual_information(counts_CE)

    @property
    def bits(self) -> float:
        """Mutual information of expert and class in bits, averaged over all layers."""
        return float(np.mean([bits for path in self.counts for _, bits in self.layers(path)]))


def specialisation(model: Model, params: Any, batches: Iterable[Batch], tokenizer: Tokenizer) -> Specialisation:
    """Counts how often tokens of each class are routed to each expert, without padding and special ids.

    Raises:
      ValueError: for a model without MoE layers, or if there are no batches.
    """
    check(
        any(stack.experts for stack in model.config.stacks),
        "the model has no MoE layer: use a model with a MoEConfig as ffn",
    )
    classes, found = TokenClasses.of(tokenizer), {}
    run = jax.jit(lambda params, batch, classes_BT: _counts(model, params, batch, classes_BT))
    for batch in batches:
        classes_BT = np.where(
            np.asarray(batch.inputs.located().real_BT),
            classes.rows(np.asarray(batch.inputs.tokens_BT)),
            _NONE,
        )
        for path, counts_LCE in jax.device_get(run(params, batch, classes_BT)).items():
            found[path] = found.get(path, 0) + counts_LCE.astype(np.float64)
    check(len(found) > 0, "there are no batches: at least one is required")
    return Specialisation(found)


def mutual_information(counts: np.ndarray) -> float:
    """Mutual information of row and column of a table of counts, in bits."""
    joint = counts / max(counts.sum(), 1)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log2(joint[seen] / apart[seen])))


def _counts(model: Model, params: Any, batch: Batch[jax.Array], classes_BT: jax.Array) -> dict[str, jax.Array]:
    """Visits [L, C, E] of the MoE layers, by the path of their block."""
    _, visits = tapped(model, params, batch.inputs, names=("*/ffn/visits",), method="hidden")
    classes_BTC = jax.nn.one_hot(classes_BT, len(CLASSES))
    return {
        name.removesuffix("/ffn/visits"): jnp.einsum("LBTE,BTC->LCE", visits_LBTE, classes_BTC)
        for name, visits_LBTE in visits.items()
    }


def _kind(piece: str) -> int:
    text = piece.strip()
    if not text:
        return _WHITESPACE if piece else _NONE
    if text[0].isdigit():
        return _DIGIT
    return _START if _is_word(text[0]) else _PUNCTUATION


def _is_word(character: str) -> bool:
    """Whether it is a word character. U+FFFD counts as one, because incomplete bytes are mostly parts of letters."""
    return character.isalnum() or character in ("_", "\N{REPLACEMENT CHARACTER}")
