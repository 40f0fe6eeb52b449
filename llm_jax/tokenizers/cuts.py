"""Where a text may be cut so that its parts, encoded one by one, give the ids of the whole."""

from collections.abc import Collection, Iterator


def pieces_of(text: str, length: int) -> Iterator[str]:
    """Parts of `length` characters, for tokenizers whose ids depend on one character each."""
    for start in range(0, max(len(text), 1), length):
        yield text[start : start + length]


def uncrossed(text: str, length: int, pairs: Collection[str]) -> Iterator[str]:
    """Parts of at least `length` characters (but for the last), cut where the two neighbours are not in `pairs`.

    For byte-pair encoding without pretokens (Sennrich et al., 2016) with `pairs` all pairs of neighbouring characters
    within the pieces: two symbols merge only into a piece, so no merge ever crosses such a place, and the merges on
    either side do not depend on each other.
    """
    start = 0
    while start < max(len(text), 1):
        end = start + length
        while end < len(text) and text[end - 1 : end + 1] in pairs:
            end += 1
        yield text[start:end]
        start = end
