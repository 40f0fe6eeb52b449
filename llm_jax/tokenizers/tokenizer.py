"""What every tokenizer does: text to integer ids and back, ids for document ends and padding, a digest, a folder.

A tokenizer's `digest` stands for everything its ids mean (its content and its special ids), never for a path, so
that token caches and checkpoints can refuse a different one.
"""

import abc
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from llm_jax.core import paths
from llm_jax.core.checks import check
from llm_jax.core.components import is_own, type_name
from llm_jax.core.configclass import configclass
from llm_jax.core.files import write_atomically
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.stream import StreamDecoder

DESCRIPTION = "tokenizer.json"
DIGEST_KEY = "llm_jax_digest"
"""Under which an exported tokenizer_config.json names the tokenizer's digest."""


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids that stand for no text."""

    bos: int
    """Begins a document."""
    eos: int
    """Ends a document."""
    pad: int
    """Fills rows; carries no loss and is attended by nothing, so that it may coincide with another id."""

    @property
    def names(self) -> dict[int, str]:
        """Names by id, for tokenizers whose special tokens have none of their own."""
        return {self.bos: "<bos>", self.eos: "<eos>", self.pad: "<pad>"}

    @classmethod
    def choose(cls, bos: int | None, eos: int | None, pad: int | None, unknown: int | None, source: str) -> Self:
        """The ids of a tokenizer made elsewhere, which may lack some of them (None).

        Without bos a document begins with pad, as in T5, or with eos, as in GPT-2. Without pad the rows are filled
        with the unknown piece, or with eos.

        Raises:
          ValueError: without eos, as nothing could end a document.
        """
        if eos is None:
            raise ValueError(
                f"{source} has no end-of-document token: export it with one "
                "(SentencePiece: --eos_id; tokenizer.json: name the token in the config's field eos)"
            )
        return cls(bos=_first(bos, pad, eos), eos=eos, pad=_first(pad, unknown, eos))


class Tokenizer(abc.ABC):
    """Maps text to ids in [0, vocab_size) and back.

    One of a user's own stands at the top level of his file, and has a `kind` of its own.
    """

    kind: ClassVar[str]
    """Names how `content` is read: a part of the digest. Give it another value when equal content comes to mean other
    ids, since token caches are kept by the digest."""
    file_name: ClassVar[str]
    """Holds `content` in a saved folder."""

    def __init__(self, vocab_size: int, special: SpecialIds, content: bytes):
        """`content` is all that makes this tokenizer beside its special ids.

        Raises:
          ValueError: for a class of a user's own that takes the `kind` of the class that it derives from.
        """
        check(
            is_own(type(self)) or "kind" in vars(type(self)),
            f"{type(self).__name__} defines no `kind`, and token caches would take it for the class that it derives "
            "from: give it a `kind` of its own",
        )
        self.vocab_size = vocab_size
        self.special = special
        self.bos_id, self.eos_id, self.pad_id = special.bos, special.eos, special.pad
        self.content = content
        identity = f"{self.kind} {special.bos} {special.eos} {special.pad}\n".encode() + content
        self.digest = hashlib.sha256(identity).hexdigest()[:16]

    def __reduce__(self):
        # Libraries forget settings when they are pickled, as data workers do with tokenizers.
        return type(self).from_content, (self.content, self.special, f"pickled {self.kind} tokenizer")

    @classmethod
    @abc.abstractmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        """Rebuilds a tokenizer from its `content` and `special`; `source` names the file in errors."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos.

        Raises:
          ValueError: for text that is no Unicode (lone surrogates) or that the vocabulary cannot express.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array per text, equal to `encode` of it. The token cache calls it from several threads at once."""
        return [np.asarray(self.encode(text), np.int32) for text in texts]

    def parts(self, text: str) -> Iterator[str]:
        """Consecutive parts of a text. The ids of all of them, in this order, are exactly the ids of the whole.

        A long document is encoded part by part in little memory and in parallel. A tokenizer whose ids may depend on
        text further away gives the whole as one part.
        """
        yield text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. Special ids give no text; bytes that are no UTF-8 give U+FFFD, as a sampled sequence may.

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
        """`decode` of ids known to be in range."""

    def first_bytes(self, token_id: int) -> int:
        """UTF-8 bytes of a text that an id stands for if it is the text's first; 0 for a special id."""
        return len(self.decode([token_id]).encode())

    def stream(self, prompt: Iterable[int] = ()) -> StreamDecoder:
        """Decodes ids one at a time, as a continuation of `prompt`, whose own text is not repeated."""
        return StreamDecoder(self.decode, self._is_undecided, prompt)

    def continuation(self, prompt: Iterable[int], ids: Iterable[int]) -> str:
        """The text that `ids` add to that of `prompt`. It is not `decode(ids)`, which drops the space before the first
        word with tokenizers that mark it there.

        Raises:
          ValueError: as `decode`.
        """
        decoder = self.stream(prompt)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.flush()

    def _is_undecided(self, token_id: int) -> bool:
        """Whether the text of a token can only be told from the tokens after it."""
        return False

    @abc.abstractmethod
    def pipeline(self) -> dict[str, Any]:
        """This tokenizer as a `tokenizer.json` of Hugging Face's `tokenizers`: the same ids for every text, but that
        the format has no way to refuse text that is not Unicode.

        Raises:
          ValueError: for a tokenizer that the format cannot express.
        """

    def export(self, directory: str | Path, max_length: int) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, from which transformers' AutoTokenizer loads this
        tokenizer; the second holds its digest.

        Args:
          max_length: of the model, in tokens.

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
            # The name of a special token in a text is text.
            "split_special_tokens": True,
            DIGEST_KEY: self.digest,
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "tokenizer.json", json.dumps(pipeline, ensure_ascii=False) + "\n")
        write_atomically(directory / "tokenizer_config.json", json.dumps(facts | special, indent=2) + "\n")

    def save(self, directory: str | Path) -> None:
        """Writes a folder from which `load_tokenizer` rebuilds this tokenizer, wherever it is moved to."""
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
    """How a tokenizer is made or found. Derive a configclass from it to use a tokenizer of your own."""

    @abc.abstractmethod
    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> Tokenizer:
        """Makes the tokenizer.

        Args:
          documents: gives the training text, afresh at every call. Only tokenizers that are trained read it.
          cache: folder that outlives the run, where trained models are kept.
          key: digest that stands for the training text.

        Raises:
          ValueError: for files that are missing or of another kind, or text that cannot be learnt from.
        """


def check_unicode(text: str) -> None:
    """Text can be written as UTF-8.

    Raises:
      ValueError: naming the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which is no "
            "Unicode text: read files as UTF-8 without errors='surrogateescape'"
        ) from error


def _first(*ids: int | None) -> int:
    return next(token_id for token_id in ids if token_id is not None)
