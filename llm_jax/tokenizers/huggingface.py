"""Tokenizers in the `tokenizer.json` format of Hugging Face, through its `tokenizers` package (pip extra `hf`)."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm_jax.core.checks import check, did_you_mean, shortened
from llm_jax.core.configclass import configclass
from llm_jax.core.files import read_json_object
from llm_jax.tokenizers.tokenizer import Frame, SpecialIds, Tokenizer, TokenizerConfig, check_unicode
from llm_jax.tokenizers.tokenizer_files import read_file

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@configclass
class HuggingFaceTokenizerConfig(TokenizerConfig):
    """A `tokenizer.json`, with the names of its special tokens, which that file does not give.

    Names that are None are read from the `tokenizer_config.json` in the same folder. Names missing there too are chosen
    by `SpecialIds.choose`.
    """

    path: str
    """The `tokenizer.json`, or its folder."""
    bos: str | None = None
    """Token that begins a document."""
    eos: str | None = None
    """Token that ends a document."""
    pad: str | None = None
    """Token at padding positions."""

    def build(self, documents: Callable[[], Iterable[str]], cache: Path, key: str) -> "HuggingFaceTokenizer":
        """See `TokenizerConfig`. Reads the files at `path`."""
        path = Path(self.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        content = read_file(str(path), "tokenizer file")
        names = _declared_names(path.with_name("tokenizer_config.json"))
        names |= {name: token for name in ("bos", "eos", "pad") if (token := getattr(self, name)) is not None}
        return HuggingFaceTokenizer(content, _find_special_ids(_load(content, str(path)), names, str(path)), str(path))


class HuggingFaceTokenizer(Tokenizer):
    """The pipeline of a `tokenizer.json`. Whether decoding restores a text exactly depends on the pipeline.

    Special tokens are never parsed from text: `<s>` in a document is three characters. Truncation and padding of the
    file are disabled. A document is encoded as a whole (see `Tokenizer.parts`), because normaliser, pretokens and added
    tokens may make ids depend on any text before and after.
    """

    kind = "huggingface"
    file_name = "huggingface.json"

    def __init__(self, content: bytes, special: SpecialIds, source: str = "tokenizer.json"):
        """`content` is the text of a `tokenizer.json`. `source` names it in errors."""
        self._model = _load(content, source)
        # Ids may have gaps, so the number of tokens is not an upper bound.
        super().__init__(max(self._model.get_vocab(with_added_tokens=True).values()) + 1, special, content)
        added = self._model.get_added_tokens_decoder()
        self._silent = {token_id for token_id, token in added.items() if token.special} | set(
            dataclasses.astuple(special)
        )

    @classmethod
    def from_content(cls, content: bytes, special: SpecialIds, source: str) -> Self:
        return cls(content, special, source)

    def encode(self, text: str) -> list[int]:
        check_unicode(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Same as `encode`, on all cores."""
        for text in texts:
            check_unicode(text)
        batch = self._model.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in batch]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """The library's own offsets, which refer to the text before it was normalised."""
        check_unicode(text)
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def token_id(self, name: str) -> int | None:
        token_id = self._model.token_to_id(name)
        return token_id if token_id in self._silent else None

    def first_bytes(self, token_id: int) -> int:
        text, token = self.decode([token_id]), self._model.id_to_token(int(token_id)) or ""
        if _BYTE_TOKEN.fullmatch(token):
            return 1
        # Part of a character: in a byte-level vocabulary every character of a token stands for one byte.
        return len(token) if _REPLACEMENT in text else len(text.encode())

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        model = self.pipeline()["model"]
        if model["type"] != "WordPiece":
            return super().pieces
        # By the prefix of pieces that continue a word: the decoder drops spaces before punctuation.
        prefix, names = model["continuing_subword_prefix"], map(self._model.id_to_token, range(self.vocab_size))
        kept = ("" if i in self._silent or name is None else name for i, name in enumerate(names))
        return tuple(name.removeprefix(prefix) if name.startswith(prefix) else name and f" {name}" for name in kept)

    @property
    def frame(self) -> Frame:
        """What the file's post-processor puts around a text."""
        text = self._model.encode("a", add_special_tokens=False).ids
        whole = self._model.encode("a", add_special_tokens=True).ids
        start = next(place for place in range(len(whole)) if whole[place : place + len(text)] == text)
        return Frame(tuple(whole[:start]), tuple(whole[start + len(text) :]))

    def takes_space(self, token_id: int) -> bool:
        added = self._model.get_added_tokens_decoder()
        return token_id in added and added[token_id].lstrip

    def pipeline(self) -> dict[str, Any]:
        return json.loads(self.content) | {"truncation": None, "padding": None}

    def _decode(self, ids: list[int]) -> str:
        kept = [token_id for token_id in ids if token_id not in self._silent]
        return self._model.decode(kept, skip_special_tokens=False)

    def _is_undecided(self, token_id: int) -> bool:
        # If any part of a run of bytes is not UTF-8, a ByteFallback decoder replaces the whole run. So the text is
        # known only at the end of the run. A special token is left out of the run and does not end it.
        return token_id in self._silent or bool(_BYTE_TOKEN.fullmatch(self._model.id_to_token(token_id) or ""))


def _load(content: bytes, source: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            f"{source} needs the package `tokenizers`, which is not installed: pip install 'llm-jax[hf]'"
        ) from error
    try:
        model = tokenizers.Tokenizer.from_str(content.decode())
    # The package raises plain Exception for an invalid file.
    except Exception as error:
        raise ValueError(f"{source} is not a tokenizer.json of Hugging Face tokenizers ({error})") from error
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    return model


def _declared_names(path: Path) -> dict[str, str]:
    """Special tokens in a `tokenizer_config.json`; empty if there is no such file."""
    if not path.exists():
        return {}
    facts = read_json_object(path, "repair or remove it")
    names = {}
    # Encoders have no documents: their sequences begin with cls and end with sep.
    others = {"bos": "cls", "eos": "sep"}
    for name in ("bos", "eos", "pad", "unk"):
        token = facts.get(f"{name}_token") or facts.get(f"{others.get(name)}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = f"{path} has {name}_token = {shortened(token)}"
        check(text is None or isinstance(text, str), f"{found}: it must be a token; repair or remove the file")
        if text is not None:
            names[name] = text
    return names


def _find_special_ids(model: Any, names: dict[str, str], source: str) -> SpecialIds:
    ids: dict[str, int | None] = dict.fromkeys(("bos", "eos", "pad", "unk"))
    for name, token in names.items():
        ids[name] = model.token_to_id(token)
        if ids[name] is None:
            known = [added.content for added in model.get_added_tokens_decoder().values()]
            raise ValueError(
                f"{name} is {token!r}, which is not a token of {source}: its special tokens are "
                f"{known}{did_you_mean(token, known)}"
            )
    return SpecialIds.choose(ids["bos"], ids["eos"], ids["pad"], ids["unk"], source)
