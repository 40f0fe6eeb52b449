"""Loads tokenizers from folders that `Tokenizer.save` wrote, such as that of a run directory."""

import json
from pathlib import Path
from typing import Any

from llm_jax.core import paths
from llm_jax.core.checks import check, check_one_of
from llm_jax.core.components import is_own_name, named_type
from llm_jax.core.files import read_json_object
from llm_jax.tokenizers import pipelines
from llm_jax.tokenizers.byte import ByteTokenizer
from llm_jax.tokenizers.character import CharacterTokenizer
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer, HuggingFaceTokenizerConfig
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import DESCRIPTION, DIGEST_KEY, Frame, SpecialIds, Tokenizer
from llm_jax.tokenizers.tokenizer_files import read_file

_KINDS = {
    tokenizer.kind: tokenizer
    for tokenizer in (ByteTokenizer, CharacterTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer)
}


def exported_digest(folder: Path) -> str | None:
    """Digest of the tokenizer that `Tokenizer.export` wrote into a transformers folder; None if another program wrote
    it."""
    return _read(folder / "tokenizer_config.json").get(DIGEST_KEY)


def exported_tokens(folder: Path) -> dict[str, int]:
    """Id of each token from the tokenizer files of a transformers folder; empty if there are none."""
    if pipeline := _read(folder / "tokenizer.json"):
        return pipelines.token_ids(pipeline)
    for file in (file for name in ("tokenizer.model", "spiece.model") if (file := folder / name).exists()):
        model = SentencePieceTokenizer(read_file(str(file), "SentencePiece model"), str(file))
        return pipelines.token_ids(model.pipeline())
    return _read(folder / "vocab.json")


def transformers_tokenizer(folder: Path) -> tuple[Tokenizer, Frame]:
    """The tokenizer of a transformers folder, from its `tokenizer.json` or its SentencePiece model, and what
    transformers puts around a text.

    Raises:
      ValueError: if the folder has neither file, or `tokenizers`, which reads the first, is not installed.
    """
    if (folder / "tokenizer.json").exists():
        tokenizer = HuggingFaceTokenizerConfig(str(folder)).build(lambda: (), folder, "")
        return tokenizer, tokenizer.frame
    for file in (file for name in ("tokenizer.model", "spiece.model") if (file := folder / name).exists()):
        tokenizer = SentencePieceTokenizer(read_file(str(file), "SentencePiece model"), str(file))
        stated = _read(folder / "tokenizer_config.json")
        # transformers' T5 tokenizers end a text with eos and never add bos. Its LLaMA tokenizers begin it with bos,
        # unless the file says otherwise.
        llama = file.name == "tokenizer.model"
        before, after = stated.get("add_bos_token"), stated.get("add_eos_token")
        before, after = (llama if before is None else before), (not llama if after is None else after)
        return tokenizer, Frame((tokenizer.bos_id,) * bool(before), (tokenizer.eos_id,) * bool(after))
    raise ValueError(f"{folder} has no tokenizer.json, tokenizer.model or spiece.model: add the tokenizer's files")


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    return read_json_object(path, "restore it") if path.exists() else {}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads a saved tokenizer. The module of a user-defined type must already be imported, see `core.source.loaded`.

    Raises:
      ValueError: if `save` did not write the folder, its content was changed, or its type does not exist.
    """
    directory = paths.at(directory)
    description = directory / DESCRIPTION
    try:
        facts = json.loads(read_file(str(description), "tokenizer description"))
        kind, digest = facts["kind"], facts["digest"]
        special = SpecialIds(bos=facts["bos"], eos=facts["eos"], pad=facts["pad"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{description} does not describe a saved tokenizer: pass the folder of a run") from error
    cls = _type(kind, description)
    path = directory / cls.file_name
    tokenizer = cls.from_content(read_file(str(path), "tokenizer file"), special, str(path))
    check(
        tokenizer.digest == digest,
        f"{path} has digest {tokenizer.digest} and was saved with {digest}: it must not change; restore it",
    )
    return tokenizer


def _type(kind: str, description: Path) -> type[Tokenizer]:
    """The class in a description: a class of the package by its `kind`, any other by its module and name."""
    if isinstance(kind, str) and "." in kind and not is_own_name(kind):
        return named_type(kind, f"the tokenizer of {description}", lambda cls: issubclass(cls, Tokenizer))
    check_one_of(f"{description}: kind", kind, _KINDS)
    return _KINDS[kind]
