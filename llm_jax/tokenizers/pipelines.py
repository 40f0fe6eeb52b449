"""Exports tokenizers to the `tokenizer.json` format of Hugging Face's `tokenizers`. The conversion is exact, and needs
neither `tokenizers` nor `transformers`.

In that format a text passes a normalizer, a pre-tokenizer and a model. A decoder converts tokens to text
(https://huggingface.co/docs/tokenizers/pipeline). Special tokens are listed under `added_tokens`.
"""

import base64
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from llm_jax.core.checks import check

SPACE_MARK = "\u2581"
# protobuf creates these classes when the module is imported, so type checkers do not see them.
_MESSAGES = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
ModelProto: Any = _MESSAGES.ModelProto
"""The protobuf message of a SentencePiece model."""
_PIECE = ModelProto.SentencePiece
_UNREACHABLE = -1e6
"""Score of pieces that must not match text. It is so low that the unigram model never chooses them."""


def of_bytes(special: dict[int, str]) -> dict[str, Any]:
    """A pipeline in which tokens 0 to 255 are the UTF-8 bytes of the text.

    Args:
      special: names of special tokens by id.
    """
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return _pipeline(_bpe(vocab, []), special, pre_tokenizer=level, decoder=level)


def of_characters(alphabet: str, special: dict[int, str]) -> dict[str, Any]:
    """A pipeline in which token i is the i-th character of `alphabet`. Other characters are an error."""
    vocab = {character: index for index, character in enumerate(alphabet)}
    # The unknown token is not in the vocabulary, so that `tokenizers` raises an error for an unknown character.
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unknown character>"}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return _pipeline(model, special, pre_tokenizer=split, decoder={"type": "Fuse"})


def of_sentencepiece(content: bytes, keeps_space_marks: bool) -> dict[str, Any]:
    """The pipeline of a SentencePiece model of type BPE or unigram.

    Args:
      content: a serialised ModelProto.
      keeps_space_marks: True: U+2581 in a text is an ordinary character. False: it is a space.

    Raises:
      ValueError: for a model of another type, or with user-defined symbols.
    """
    model = ModelProto.FromString(content)
    kinds = {piece.type for piece in model.pieces}
    check(
        _PIECE.USER_DEFINED not in kinds,
        "the SentencePiece model has user-defined symbols, which cannot be exported: export the model without its "
        "tokenizer",
    )
    # Spaces in pieces are written as spaces, so that U+2581 in a text is spelt in bytes like any unknown character.
    names = [
        piece.piece.replace(SPACE_MARK, " ") if piece.type == _PIECE.NORMAL else piece.piece for piece in model.pieces
    ]
    normal = {name: piece.score for name, piece in zip(names, model.pieces, strict=True) if piece.type == _PIECE.NORMAL}
    special = {
        index: piece.piece for index, piece in enumerate(model.pieces) if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)
    }
    unknown = next(index for index, piece in enumerate(model.pieces) if piece.type == _PIECE.UNKNOWN)
    fallback = _PIECE.BYTE in kinds
    kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type)
    check(
        kind in ("BPE", "UNIGRAM"), f"the SentencePiece model is of type {kind}: only BPE and UNIGRAM can be exported"
    )
    if kind == "BPE":
        vocab = {name: index for index, name in enumerate(names)}
        made = _bpe(vocab, _merges(normal), names[unknown], fallback)
    else:
        scores = [[name, normal.get(name, _UNREACHABLE)] for name in names]
        made = {"type": "Unigram", "unk_id": unknown, "vocab": scores, "byte_fallback": fallback}
    normalizer, decoder = _spaces(model.normalizer_spec, keeps_space_marks)
    split = None if kind == "BPE" else _apart(normal, [name for name in names if name not in normal], fallback)
    return _pipeline(made, special, normalizer=normalizer, pre_tokenizer=split, decoder=decoder)


def _apart(normal: Iterable[str], others: Iterable[str], fallback: bool) -> dict[str, Any] | None:
    """A pre-tokenizer that splits a text at characters of no normal piece, if the name of another piece, such as
    '<0x41>', has one; otherwise None. Without the split the model would match that name, because unknown characters
    have a lower score. Normal pieces never cross a split."""
    known = set().union(*normal)
    missing = set().union(*others) - known
    if not missing:
        return None
    of = lambda characters: "".join(f"\\x{{{ord(character):X}}}" for character in sorted(characters))  # noqa: E731
    # Without byte fallback a run of unknown characters is one unknown piece, which must not be split.
    pattern = f"[{of(missing)}]" if fallback else f"[^{of(known)}]+"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def token_ids(pipeline: dict[str, Any]) -> dict[str, int]:
    """Id of each token of a pipeline, with U+2581 replaced by a space.

    Raises:
      ValueError: for a pipeline without a vocabulary.
    """
    try:
        vocab = pipeline["model"]["vocab"]
        ids = {name: i for i, (name, *_) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
        ids |= {token["content"]: token["id"] for token in pipeline["added_tokens"] or ()}
        return {name.replace(SPACE_MARK, " "): token_id for name, token_id in ids.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"tokenizer.json has no vocabulary ({error!r}): restore it") from error


def unknown(pipeline: dict[str, Any]) -> str | None:
    """The unknown token of a pipeline; None if it has none."""
    model = pipeline["model"]
    index = model.get("unk_id")
    name = model["vocab"][index][0] if index is not None else model.get("unk_token")
    return name if name is not None and name.replace(SPACE_MARK, " ") in token_ids(pipeline) else None


def token_name(pipeline: dict[str, Any], token_id: int) -> str:
    """The name of a token in a pipeline.

    Raises:
      ValueError: if the pipeline has no token with this id.
    """
    vocab = pipeline["model"]["vocab"]
    names = (
        enumerate(name for name, _ in vocab) if isinstance(vocab, list) else ((i, name) for name, i in vocab.items())
    )
    found = dict(names) | {token["id"]: token["content"] for token in pipeline["added_tokens"]}
    check(token_id in found, f"the tokenizer has no token with id {token_id}: set the special id to another")
    return found[token_id]


def _spaces(spec: Any, keeps_space_marks: bool) -> tuple[dict | None, dict]:
    """The normalizer and the decoder for the model's character normalisation and treatment of spaces."""
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if not keeps_space_marks:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z|(?<= ) +"}, "content": ""})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "normalizers": steps} if steps else None, {"type": "Sequence", "decoders": decoders}


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Pairs of pieces whose concatenation is a piece, in descending order of that piece's score."""
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    halves = ((piece[:cut], piece[cut:]) for piece in ranked for cut in range(1, len(piece)))
    return [[left, right] for left, right in halves if left in scores and right in scores]


def _bpe(vocab: dict[str, int], merges: Sequence[Sequence[str]], unknown: str | None = None, fallback=False) -> dict:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": fallback,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }


def _pipeline(model: dict[str, Any], special: dict[int, str], **parts: dict[str, Any] | None) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": name} | flags for index, name in sorted(special.items())]
    fixed = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return (
        fixed
        | {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
        | parts
        | {"model": model}
    )


def _byte_characters() -> Iterable[str]:
    """The character that represents each byte in byte-level pipelines: the byte itself if it is printable Latin-1,
    otherwise the next character from U+0100 on (Radford et al. 2019, `bytes_to_unicode` in the code of GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
