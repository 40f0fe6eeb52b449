"""Reads back the folder that `Tokenizer.save` writes, such as the one that a run directory carries."""

import json
from pathlib import Path

from llm_jax.core.checks import check, check_one_of
from llm_jax.tokenizers.byte import ByteTokenizer
from llm_jax.tokenizers.character import CharacterTokenizer
from llm_jax.tokenizers.files import read_file
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from llm_jax.tokenizers.tokenizer import DESCRIPTION, SpecialIds, Tokenizer

_KINDS = {
    tokenizer.kind: tokenizer
    for tokenizer in (ByteTokenizer, CharacterTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer)
}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Rebuilds a saved tokenizer.

    Raises:
      ValueError: if the folder is none that `save` wrote, or its content is not what was saved.
    """
    description = Path(directory) / DESCRIPTION
    try:
        facts = json.loads(read_file(str(description), "tokenizer description"))
        kind, digest = facts["kind"], facts["digest"]
        special = SpecialIds(bos=facts["bos"], eos=facts["eos"], pad=facts["pad"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{description} does not describe a saved tokenizer: give the folder of a run") from error
    check_one_of(f"{description}: kind", kind, _KINDS)
    path = Path(directory) / _KINDS[kind].file_name
    tokenizer = _KINDS[kind].from_content(read_file(str(path), "tokenizer file"), special, str(path))
    check(
        tokenizer.digest == digest,
        f"{path} has digest {tokenizer.digest} but was saved with {digest}: it was changed since; restore it",
    )
    return tokenizer
