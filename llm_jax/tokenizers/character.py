"""Characters as tokens. The alphabet is the set of characters of a text."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.cuts import pieces_of
from llm_jax.tokenizers.tokenizer import SpecialIds, Tokenizer, TokenizerConfig
from llm_jax.tokenizers.tokenizer_files import read_file

_CHARACTERS_PER_PART = 2**18


@configclass
class CharacterTokenizerConfig(TokenizerConfig):
    """The sorted characters of one text, as in nanoGPT's character-level data sets."""

    path: str | None = None
    """UTF-8 text file, read without conversion of line ends; None: the experiment's training text."""

    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> "CharacterTokenizer":
        """See `TokenizerConfig`. Reads the file at `path`, or the documents."""
        if self.path is None:
            alphabet: set[str] = set()
            for document in documents():
                alphabet.update(document)
            return CharacterTokenizer("".join(sorted(alphabet)))
        text = _decode_utf8(read_file(self.path, "text file"), self.path)
        return CharacterTokenizer("".join(sorted(set(text))))


class CharacterTokenizer(Tokenizer):
    """Ids 0..n-1 are the n characters of the alphabet in order of code point. bos is n, eos n+1, pad n+2."""

    kind = "character"
    file_name = "alphabet.txt"

    def __init__(self, alphabet: str):
        """`alphabet` must hold each character once, sorted."""
        size = len(alphabet)
        super().__init__(size + 3, SpecialIds(bos=size, eos=size + 1, pad=size + 2), alphabet.encode())
        self.alphabet = alphabet
        self._ids = {character: index for index, character in enumerate(alphabet)}

    @classmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        alphabet = _decode_utf8(content, source)
        check(alphabet == "".join(sorted(set(alphabet))), f"{source} is not an alphabet: its characters must be sorted")
        return cls(alphabet)

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise ValueError(
                f"character {character!r} (U+{ord(character):04X}) is not in the alphabet of {len(self.alphabet)} "
                "characters: use an alphabet of a text that has it, or bytes, or SentencePiece"
            ) from error

    def parts(self, text: str) -> Iterator[str]:
        return pieces_of(text, _CHARACTERS_PER_PART)

    def pipeline(self) -> dict[str, Any]:
        return pipelines.of_characters(self.alphabet, self.special.names)

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.alphabet[token_id] for token_id in ids if token_id < len(self.alphabet))


def _decode_utf8(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {content[error.start]:#04x} at offset {error.start}): convert it to UTF-8"
        ) from error
