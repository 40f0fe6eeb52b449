"""Where words and sentences begin and end, by the text of each id.

Legend: V vocabulary of the tokenizer, T length.
"""

import numpy as np

from llm_jax.tokenizers.tokenizer import Tokenizer

_SENTENCE_ENDS = (".", "!", "?")


def word_boundaries(tokenizer: Tokenizer) -> np.ndarray:
    """bool [2, V]: whether a word begins at each id, and whether one ends with it, whatever the ids around it.

    A word begins at a piece with leading white space (U+2581 of SentencePiece, the space of GPT-2), or without the '##'
    of WordPiece, and ends before the next such piece. White space without letters, such as the byte of a space, is a
    word of its own, as is a special id.
    """
    begins = [not piece or piece[0].isspace() for piece in tokenizer.pieces]
    ends = [not piece or piece[-1].isspace() for piece in tokenizer.pieces]
    return np.array([begins, ends])


def word_numbers(tokens_T: np.ndarray, documents_T: np.ndarray, boundaries_2V: np.ndarray) -> np.ndarray:
    """int [T], the number of the word of each token in its sequence, from 0 on.

    Args:
      documents_T: the document of each token; a word ends where another document begins.
      boundaries_2V: `word_boundaries`.
    """
    begins_T, ends_T = boundaries_2V[:, tokens_T]
    begins_T[1:] |= ends_T[:-1] | (documents_T[1:] != documents_T[:-1])
    return np.cumsum(begins_T) - begins_T[:1]


def word_separator(tokenizer: Tokenizer) -> str:
    """The text before every word but the first, so that words that are encoded one by one are those of a text: ' ', or
    '' if the tokenizer separates them by itself, as WordPiece and models of SentencePiece with a space in front do."""
    words = [piece for piece in tokenizer.pieces if piece.strip().isalpha()]
    # A piece with a space in front of it is a whole word to every tokenizer.
    word = next((piece for piece in words if piece[0].isspace()), words[0] if words else "a").strip()
    ids = tokenizer.encode(word)
    return "" if any(map(str.isspace, tokenizer.decode([*ids, *ids]).strip())) else " "


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """int32, the ids that end a sentence: their text ends with '.', '!' or '?', or has a line end."""
    ends = [piece.rstrip().endswith(_SENTENCE_ENDS) or "\n" in piece for piece in tokenizer.pieces]
    return np.flatnonzero(ends).astype(np.int32)
