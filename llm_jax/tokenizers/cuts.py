"""Splits a text into parts such that the ids of the parts, concatenated, are the ids of the text."""

from collections.abc import Collection, Iterator


def pieces_of(text: str, length: int) -> Iterator[str]:
    """Parts of `length` characters, for tokenizers in which each id depends on one character."""
    for start in range(0, max(len(text), 1), length):
        yield text[start : start + length]


def uncrossed(text: str, length: int, pairs: Collection[str]) -> Iterator[str]:
    """Parts of at least `length` characters (except the last), split between two characters that are not in `pairs`.

    For byte-pair encoding without pretokens (Sennrich et al., 2016). `pairs` must hold all pairs of adjacent characters
    within pieces. Two symbols merge only into a piece, so no merge crosses such a split, and the merges on either side
    are independent.
    """
    start = 0
    while start < max(len(text), 1):
        end = start + length
        while end < len(text) and text[end - 1 : end + 1] in pairs:
            end += 1
        yield text[start:end]
        start = end
