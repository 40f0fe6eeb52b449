"""Ids of the tokens that an objective uses besides text: masks, sentinels, separators, modes."""

from collections.abc import Sequence

from llm_jax.core.checks import check
from llm_jax.tokenizers.tokenizer import Tokenizer

MASK = "<mask>"
"""Replaces a token that is predicted."""
SEPARATOR = "<sep>"
"""Ends a part of a sequence."""

PREFIX, SUFFIX, MIDDLE = "<PRE>", "<SUF>", "<MID>"
"""Precede the parts of a document (Bavarian et al. 2022, arXiv:2207.14255, 3)."""

SPELLINGS = {
    MASK: ("<mask>", "[MASK]"),
    SEPARATOR: ("<sep>", "[SEP]", "</s>"),
    PREFIX: ("<PRE>", "<fim_prefix>", "<|fim_prefix|>", "<fim-prefix>"),
    SUFFIX: ("<SUF>", "<fim_suffix>", "<|fim_suffix|>", "<fim-suffix>"),
    MIDDLE: ("<MID>", "<fim_middle>", "<|fim_middle|>", "<fim-middle>"),
}
"""Names of a token in published vocabularies, in the order of preference. Any other token has one name."""


def sentinel(number: int) -> str:
    """Name of a sentinel of T5 (Raffel et al. 2020, arXiv:1910.10683, 3.1.4), numbered from 0."""
    return f"<extra_id_{number}>"


def sentinels(count: int) -> tuple[str, ...]:
    """Names of the first `count` sentinels."""
    return tuple(map(sentinel, range(count)))


def ids(names: Sequence[str], tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, int]:
    """Id of each of `names`, in their order: that of the tokenizer's token of this name; all others get the last ids of
    the model's vocabulary, the first of them the very last, which no text has.

    Raises:
      ValueError: if the vocabulary has no room for those that the tokenizer lacks.
    """
    found = {name: _in(tokenizer, name) for name in names}
    missing = [name for name in names if found[name] is None]
    text = 0 if tokenizer is None else tokenizer.vocab_size
    check(
        text + len(missing) <= vocab_size,
        f"the tokenizer has {text} tokens and none named {_listed(missing)}, and model.vocab_size is {vocab_size}: it "
        f"must be at least {text + len(missing)}, or use a tokenizer that has these tokens",
    )
    last = {name: vocab_size - 1 - index for index, name in enumerate(missing)}
    return {name: last[name] if token_id is None else token_id for name, token_id in found.items()}


def mask_id(tokenizer: Tokenizer | None, vocab_size: int) -> int:
    """Id of the mask token. Raises ValueError as `ids`."""
    return ids((MASK,), tokenizer, vocab_size)[MASK]


def created(names: Sequence[str], tokenizer: Tokenizer | None) -> list[str]:
    """Those of `names` that the tokenizer lacks."""
    return [name for name in names if _in(tokenizer, name) is None]


def _in(tokenizer: Tokenizer | None, name: str) -> int | None:
    if tokenizer is None:
        return None
    known = (tokenizer.token_id(spelling) for spelling in SPELLINGS.get(name, (name,)))
    return next((token_id for token_id in known if token_id is not None), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]} ({len(names)})"
