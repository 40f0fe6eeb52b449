"""The tokenizer interface: text to integer ids and back, special ids, a digest, saving to a folder.

A tokenizer's `digest` is a hash of its content and its special ids, and does not depend on a path. Token caches and
checkpoints use it to reject a different tokenizer.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from llm_jax.core import paths
from llm_jax.core.checks import check, shortened
from llm_jax.core.components import is_own, type_name
from llm_jax.core.configclass import configclass
from llm_jax.core.files import write_atomically
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.stream import StreamDecoder

DESCRIPTION = "tokenizer.json"
DIGEST_KEY = "llm_jax_digest"
"""Key of the tokenizer's digest in an exported tokenizer_config.json."""


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids without text."""

    bos: int
    """Begins a document."""
    eos: int
    """Ends a document."""
    pad: int
    """Padding. It has no loss and is never attended to, so it may equal another id."""

    @property
    def names(self) -> dict[int, str]:
        """Names by id, for tokenizers whose special tokens have no names."""
        return {self.bos: "<bos>", self.eos: "<eos>", self.pad: "<pad>"}

    @classmethod
    def choose(cls, bos: int | None, eos: int | None, pad: int | None, unknown: int | None, source: str) -> Self:
        """The special ids of a tokenizer from elsewhere, in which some may be missing (None).

        A missing bos is replaced by pad, as in T5, or by eos, as in GPT-2. A missing pad is replaced by the unknown
        piece, or by eos.

        Raises:
          ValueError: if eos is missing.
        """
        if eos is None:
            raise ValueError(
                f"{source} has no end-of-document token: export it with one "
                "(SentencePiece: --eos_id; tokenizer.json: name the token in the config's field eos)"
            )
        return cls(bos=_first(bos, pad, eos), eos=eos, pad=_first(pad, unknown, eos))


class Frame(NamedTuple):
    """Special tokens around a whole text, such as the source of an encoder-decoder or BERT's [CLS] text [SEP]."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, vocab_size) and back.

    A user-defined tokenizer must be defined at the top level of its file, with a `kind` of its own.
    """

    kind: ClassVar[str]
    """Name of the format of `content`, which is part of the digest. Change it whenever equal content yields other ids,
    because token caches are keyed by the digest."""
    file_name: ClassVar[str]
    """Name of the file with `content` in a saved folder."""

    def __init__(self, vocab_size: int, special: SpecialIds, content: bytes):
        """`content` must determine the tokenizer together with its special ids.

        Raises:
          ValueError: for a user-defined class that inherits the `kind` of its base class.
        """
        check(
            is_own(type(self)) or "kind" in vars(type(self)),
            f"{type(self).__name__} does not define `kind`, so token caches would confuse it with its base class: "
            "define a `kind` of its own",
        )
        self.vocab_size = vocab_size
        self.special = special
        self.bos_id, self.eos_id, self.pad_id = special.bos, special.eos, special.pad
        self.content = content
        identity = f"{self.kind} {special.bos} {special.eos} {special.pad}\n".encode() + content
        self.digest = hashlib.sha256(identity).hexdigest()[:16]

    def __reduce__(self):
        # Rebuilt from content, because tokenizer libraries lose settings when pickled, for example for data workers.
        return type(self).from_content, (self.content, self.special, f"pickled {self.kind} tokenizer")

    @classmethod
    @abc.abstractmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        """Builds a tokenizer from its `content` and `special`. `source` names the file in errors."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos.

        Raises:
          ValueError: for text that is not valid Unicode (lone surrogates) or that the vocabulary cannot express.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array per text, equal to its `encode`. It must be thread-safe: the token cache uses threads."""
        return [np.asarray(self.encode(text), np.int32) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text, equal to `encode`, and for each the index of the character of the text at which it starts,
        which never decreases. Ids that are characters only together, such as the bytes of one, start at the first of
        these characters. The base decodes the ids one at a time.

        Raises:
          ValueError: as `encode`; in the base, if the decoded text is not the text.
        """
        ids, starts = self.encode(text), []
        decoder, parts, shown = self.stream(), [], 0
        for token_id in ids:
            starts.append(shown)
            parts.append(decoder.push(token_id))
            shown += len(parts[-1])
        decoded = "".join([*parts, decoder.flush()])
        if decoded != text:
            place = len(os.path.commonprefix([decoded, text]))
            raise ValueError(
                f"the tokenizer changes the text at character {place}, from {shortened(text[place:])} to "
                f"{shortened(decoded[place:])}, so that the places of its tokens are not known: use a tokenizer that "
                "keeps every text, or a tokenizer.json of Hugging Face"
            )
        return ids, starts

    def parts(self, text: str) -> Iterator[str]:
        """Consecutive parts of a text. Their concatenated ids must be exactly the ids of the whole text.

        Parts of a long document are encoded in parallel and in little memory. A tokenizer whose ids may depend on
        distant text must return the whole text as one part.
        """
        yield text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. Special ids have no text. Bytes that are not UTF-8, as may be sampled, become U+FFFD.

        Raises:
          ValueError: for an id outside the vocabulary.
        """
        ids = [int(token_id) for token_id in ids]
        for token_id in ids:
            check(
                0 <= token_id < self.vocab_size,
                f"token id {token_id} is outside the vocabulary of {self.vocab_size}: mask the logits beyond it, "
                "or use the tokenizer that the model was trained with",
            )
        return self._decode(ids)

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """`decode` for ids that are in range."""

    def token_id(self, name: str) -> int | None:
        """Id of the special token `name`, such as '<mask>'; None if the vocabulary has none of that name. Texts never
        contain it, whatever their characters."""
        return None

    def takes_space(self, token_id: int) -> bool:
        """Whether a special token, such as RoBERTa's mask, stands for the space before it too."""
        return False

    def first_bytes(self, token_id: int) -> int:
        """Number of UTF-8 bytes that an id decodes to as the first id of a text; 0 for a special id."""
        return len(self.decode([token_id]).encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """The text that each id adds to a text before it: '' for a special id, ' fox' for a piece that begins a word.
        Bytes that are no character by themselves are U+FFFD. It is derived from the vocabulary at first use."""
        # After another id, since some tokenizers drop a space before the first word of a text.
        before = next(([i] for i in range(self.vocab_size) if self.decode([i]).strip()), [])
        start = len(self.decode(before))
        return tuple(self.decode([*before, token_id])[start:] for token_id in range(self.vocab_size))

    def stream(self, prompt: Iterable[int] = ()) -> StreamDecoder:
        """A decoder for ids one at a time, as a continuation of `prompt`, whose text is left out."""
        return StreamDecoder(self.decode, self._is_undecided, prompt)

    def continuation(self, prompt: Iterable[int], ids: Iterable[int]) -> str:
        """The text that `ids` add to that of `prompt`. It differs from `decode(ids)`, which for some tokenizers drops a
        space before the first word.

        Raises:
          ValueError: as `decode`.
        """
        decoder = self.stream(prompt)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def _is_undecided(self, token_id: int) -> bool:
        """Whether the text of a token depends on the tokens after it."""
        return False

    @abc.abstractmethod
    def pipeline(self) -> dict[str, Any]:
        """This tokenizer as a `tokenizer.json` of Hugging Face's `tokenizers`, with the same ids for every text. The
        format cannot reject text that is not valid Unicode.

        Raises:
          ValueError: if the format cannot express the tokenizer.
        """

    def export(self, directory: str | Path, max_length: int) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, from which transformers' AutoTokenizer loads this
        tokenizer. The second file holds its digest.

        Args:
          max_length: maximum sequence length of the model, in tokens.

        Raises:
          ValueError: as `pipeline`.
        """
        pipeline = self.pipeline()
        special = {
            f"{name}_token": pipelines.token_name(pipeline, token_id)
            for name, token_id in dataclasses.asdict(self.special).items()
        }
        if (unknown := pipelines.unknown(pipeline)) is not None:
            special["unk_token"] = unknown
        facts = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            # The name of a special token in a text is ordinary text.
            "split_special_tokens": True,
            DIGEST_KEY: self.digest,
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "tokenizer.json", json.dumps(pipeline, ensure_ascii=False) + "\n")
        write_atomically(directory / "tokenizer_config.json", json.dumps(facts | special, indent=2) + "\n")

    def save(self, directory: str | Path) -> None:
        """Writes a folder from which `load_tokenizer` loads this tokenizer. The folder can be moved."""
        directory = paths.at(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / self.file_name, self.content)
        facts = {
            "kind": self.kind if is_own(type(self)) else type_name(type(self)),
            "digest": self.digest,
            "vocab_size": self.vocab_size,
            **dataclasses.asdict(self.special),
        }
        write_atomically(directory / DESCRIPTION, json.dumps(facts, indent=2).encode() + b"\n")


@configclass
class TokenizerConfig(abc.ABC):
    """Config of a tokenizer. Derive a configclass from it to use your own tokenizer."""

    @abc.abstractmethod
    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> Tokenizer:
        """Builds the tokenizer.

        Args:
          documents: returns a new iterator over the training text at every call. Only trained tokenizers use it.
          cache: folder for trained models, which outlives the run.
          key: digest of the training text.

        Raises:
          ValueError: for missing or invalid files, or text on which no tokenizer can be trained.
        """


def check_unicode(text: str) -> None:
    """Checks that a text can be encoded as UTF-8.

    Raises:
      ValueError: if it cannot. The message gives the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is not "
            "Unicode text: read files as UTF-8 without errors='surrogateescape'"
        ) from error


def _first(*ids: int | None) -> int:
    return next(token_id for token_id in ids if token_id is not None)
