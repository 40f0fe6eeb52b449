"""Checkpoints in the format of Hugging Face's transformers: a folder with config.json and safetensors.

Legend: B batch, T length, V vocabulary.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import trees
from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.dtypes import Precision
from llm_jax.core.files import write_atomically
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.permutation import permuted
from llm_jax.interop.settings import Settings
from llm_jax.interop.weights import WeightFolder, read_json, write_folder
from llm_jax.layers.mixers.masks import Placement
from llm_jax.layers.mixers.relative_attention import RelativeAttentionConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.models.build import Model, abstract_parameters, build
from llm_jax.models.config import ModelConfig, TransformerConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import ClassHead
from llm_jax.tokenizers import Tokenizer

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TOKENIZER_FILES = (
    *(_GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt"),
    "chat_template.jinja",
)
_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
_ORDER = {"perm_mask", "target_mapping"}
_TARGETS = {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}
_DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


def read_config(directory: str | Path) -> ModelConfig:
    """The model that a folder's config.json describes; its weights are not read.

    Raises:
      ValueError: for a family or an option that is not supported, by name.
    """
    options = _options(Path(directory))
    return _family(options).read(Settings(options))


def load_hf(directory: str | Path, dtype: str = "float32") -> tuple[Model, Any]:
    """The model of a folder and its parameters. Beyond the parameters memory holds one leaf and one tensor.

    Args:
      dtype: of parameters and computation, "float32" or "bfloat16", whatever the files hold.

    Raises:
      ValueError: for a family or an option that is not supported, pickled or quantized weights, a missing, surplus,
        misshapen or unreadable tensor. Each by name.
    """
    folder, precision = Path(directory), Precision(params=dtype, compute=dtype)
    options = _options(folder)
    family = _family(options)
    config = family.read(Settings(options))
    model = build(config, precision)
    abstract, _ = abstract_parameters(model)
    wanted = dict(trees.named_leaves(abstract))
    tensors = list(family.tensors(config))
    _check_whole(tensors, wanted)
    leaves = {}
    with WeightFolder(folder) as stored:
        names = _names(stored, family, tensors, folder)
        # The largest first: the copies with which a leaf is made then stand beside few others.
        for path, leaf in sorted(wanted.items(), key=lambda item: -item[1].size):
            leaves[path] = jax.device_put(_filled(path, leaf, tensors, stored, names))
    return model, jax.tree_util.tree_map_with_path(lambda path, _: leaves[trees.path_name(path)], abstract)


def save_hf(
    model: Model,
    params: Any,
    directory: str | Path,
    family: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    tokenizer: Tokenizer | Path | None = None,
) -> None:
    """Writes what transformers' `from_pretrained` loads.

    Args:
      tokenizer: that of the model, written for AutoTokenizer, or a folder of transformers' whose tokenizer is copied;
        config.json and generation_config.json name its special tokens. None: the folder has no tokenizer, and
        config.json names no special tokens.
      family: a `model_type`; None: the first one whose config.json can say all of the model.
      dtype: of the files: "float32", "bfloat16" or "float16".
      shard_bytes: size above which another file is begun.

    Raises:
      ValueError: if no family, or not the one asked for, can say all of the model; if the folder holds anything; for a
        value that the type cannot hold, or a tokenizer that cannot be exported or has more tokens than the model.
        Nothing is left behind.
    """
    if isinstance(tokenizer, Tokenizer):
        check(
            tokenizer.vocab_size <= model.config.sides[-1].vocab_size,
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.sides[-1].vocab_size}: it is "
            "not the tokenizer that the model was trained with",
        )
        tokenizer.pipeline()  # which may raise, before anything is written
    check(dtype in _DTYPES, f"dtype is {dtype!r}: it must be one of {', '.join(_DTYPES)}")
    found = _expressing(model.config, family)
    folder, kind = Path(directory), np.dtype(_DTYPES[dtype])
    leaves = dict(trees.named_leaves(params))
    tensors = {tensor.name: tensor for tensor in found.tensors(model.config)}
    _check_whole(tensors.values(), leaves)

    def tensor(name: str) -> np.ndarray:
        parts = [np.asarray(leaves[leaf.path][leaf.place]) for leaf in tensors[name].leaves]
        exact = tensors[name].join(parts)
        with np.errstate(over="ignore"):
            rounded = exact.astype(kind)
        fits = np.isfinite(rounded).all() or not np.isfinite(exact).all()
        check(bool(fits), f"{name} has values too large for {dtype}: write bfloat16 or float32")
        return rounded

    sizes = {name: kind.itemsize * int(np.prod(item.shape)) for name, item in tensors.items()}
    write_folder(folder, sizes, tensor, shard_bytes)
    facts = {"model_type": found.model_type, "architectures": [found.architecture], "torch_dtype": dtype}
    facts |= _write_tokenizer(tokenizer, folder, model.config.sides[-1].max_length)
    # Some families state a pad token of their own, from which positions are counted.
    options = facts | found.write(model.config)
    write_atomically(folder / _CONFIG, json.dumps(options, indent=2, sort_keys=True) + "\n")


def _write_tokenizer(tokenizer: Tokenizer | Path | None, folder: Path, max_length: int) -> dict[str, int | None]:
    """Writes the tokenizer into `folder`; returns the fields of config.json that name its special tokens."""
    # Left out, they would be a class's own defaults: ids of another vocabulary, at which generation would stop.
    special: dict[str, int | None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if isinstance(tokenizer, Tokenizer):
        special |= {f"{name}_token_id": token for name, token in dataclasses.asdict(tokenizer.special).items()}
        tokenizer.export(folder, max_length)
        write_atomically(folder / _GENERATION, json.dumps(special, indent=2) + "\n")
    elif tokenizer is not None:
        special |= {name: value for name, value in _options(tokenizer).items() if name in special}
        for file in (file for name in _TOKENIZER_FILES if (file := tokenizer / name).is_file()):
            write_atomically(folder / file.name, file.read_bytes())
    return special


def forward(model: Model, params: Any, **inputs: np.ndarray) -> np.ndarray:
    """What transformers calls `logits`, float32: of the vocabulary [B, T, V], of classes [B, T, C] or [B, C]; of tokens
    that may have been replaced [B, T]; of spans `start_logits` and `end_logits` [B, T, 2]; of targets [B, P, V].

    Args:
      inputs: as of `arguments`.

    Raises:
      ValueError: as `arguments`.
    """
    output = jax.jit(model.apply)({"params": params}, *arguments(model, **inputs))
    logits = np.asarray(output.logits_BTV, np.float32)
    if "target_mapping" in inputs:
        logits = logits[:, -np.shape(inputs["target_mapping"])[1] :]
    head = model.config.sides[-1].head
    if not isinstance(head, ClassHead):
        return logits
    if head.of == "row":
        return logits[:, 0]
    replaced = head.of == "token" and head.classes == 1 and head.transform is not None
    return logits[..., 0] if replaced else logits


def arguments(model: Model, **inputs: np.ndarray) -> tuple[Any, ...]:
    """What the model is called with where transformers' is called with `inputs`.

    Args:
      inputs: by transformers' names: `input_ids` [B, T], and where wanted `attention_mask` [B, T], 0 for padding,
        `position_ids` and `token_type_ids` [B, T]. Of an encoder-decoder `input_ids` [B, S], `decoder_input_ids` [B, T]
        and the `attention_mask` and `decoder_attention_mask` of each. Of a model with targets `perm_mask` [B, T, T] and
        `target_mapping` [B, P, T].

    Raises:
      ValueError: for an input that the model does not take, and where tokens are missing; for an id, a position or a
        type outside its table, a mask of other values than 0 and 1, and masks that are no order of prediction.
    """
    config, pair = model.config, isinstance(model, EncoderDecoder)
    asks = not pair and config.embed.target
    known = _TARGETS if pair else _INPUTS | (_ORDER if asks else set())
    unknown = set(inputs) - known
    check(not unknown, f"forward knows no input {', '.join(sorted(unknown))}: it takes {', '.join(sorted(known))}")
    missing = {"input_ids", "decoder_input_ids"} & known - set(inputs)
    check(not missing, f"forward is given no {' and no '.join(sorted(missing))}: the model reads them")
    order = {name: inputs[name] for name in _ORDER & set(inputs)}
    encoder, decoder = config.sides[0], config.sides[-1]
    sides = {name: decoder if name.startswith("decoder_") else encoder for name in inputs if name not in order}
    given = {name: _checked(name, inputs[name], side, decoder.vocab_size) for name, side in sides.items()}
    if pair:
        target = {name.removeprefix("decoder_"): array for name, array in given.items() if name.startswith("decoder_")}
        source = {name: array for name, array in given.items() if not name.startswith("decoder_")}
        return source["input_ids"], target["input_ids"], _placement(source), _placement(target)
    placement = permuted(_placement(given, _counts_tokens(config)), **order)
    targets = placement.positions_BT.shape[1] - given["input_ids"].shape[1]
    # A token that asks has one vector whatever its id.
    return jnp.pad(given["input_ids"], ((0, 0), (0, targets))), placement


def _checked(name: str, array: np.ndarray, side: TransformerConfig, vocab_size: int) -> jax.Array:
    """An input as int32, of which every value has a row in its table: jax would take the nearest one for another.

    Args:
      vocab_size: of a stack without a table of its own.
    """
    limits = {
        "input_ids": (side.vocab_size or vocab_size, "the model's vocabulary"),
        "attention_mask": (2, "a mask"),
        "position_ids": (side.max_length, "the model's positions"),
        "token_type_ids": (_types(side), "the model's token types"),
    }
    limit, table = limits[name.removeprefix("decoder_")]
    check(limit > 0, f"{name} is given and the model has no token types: leave it out")
    found = np.asarray(array)
    check(
        found.ndim == 2 and found.size > 0 and np.issubdtype(found.dtype, np.number) | (found.dtype == bool),
        f"{name} has shape {found.shape} and type {found.dtype}: give whole numbers [rows, tokens]",
    )
    wrong = found[(found < 0) | (found >= limit) | (found != np.floor(found))]
    check(
        not wrong.size,
        f"{name} holds {wrong[:1].tolist()[:1]}: values of {table} are whole numbers from 0 to {limit - 1}",
    )
    return jnp.asarray(found, jnp.int32)


def _types(side: TransformerConfig) -> int:
    """Number of token types. XLNet compares those of two tokens and knows no limit."""
    mixers = [block.mixer for segment in side.segments for block in segment.blocks]
    compared = any(isinstance(mixer, RelativeAttentionConfig) for mixer in mixers)
    return np.iinfo(np.int32).max if compared else side.embed.types


def _counts_tokens(config: TransformerConfig) -> bool:
    """Whether positions count only what is no padding, as in the families whose table begins later. BART's does too,
    and counts all."""
    learned = config.embed.position
    return isinstance(learned, LearnedPositionsConfig) and learned.offset > 0


def _placement(given: dict[str, jax.Array], counts_tokens: bool = False) -> Placement:
    """Where tokens stand by transformers' rules."""
    shape = given["input_ids"].shape
    mask_BT = given["attention_mask"] if "attention_mask" in given else jnp.ones(shape, jnp.int32)
    if "position_ids" in given:
        positions_BT = given["position_ids"]
    elif counts_tokens:
        positions_BT = jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0)
    else:
        positions_BT = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    # transformers takes the last position of the whole batch, padding included, for the length of every sequence.
    lengths_BT = jnp.broadcast_to(jnp.max(positions_BT) + 1, shape)
    return Placement(positions_BT, mask_BT, given.get("token_type_ids"), fixed_lengths_BT=lengths_BT)


def _options(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    check(path.exists(), f"{folder} has no {_CONFIG}: it is not a folder that save_pretrained wrote")
    options = read_json(path)
    check(
        options.setdefault("quantization_config") is None,
        f"{path} has quantization_config: quantized weights are not supported; take the unquantized checkpoint",
    )
    return options


def _family(options: dict[str, Any]) -> Family:
    kind = Settings(options).given("model_type")
    check(
        kind in FAMILIES,
        f"{_CONFIG} has model_type {kind!r}: supported are {', '.join(FAMILIES)}{did_you_mean(str(kind), FAMILIES)}",
    )
    return FAMILIES[kind]


def _expressing(config: ModelConfig, name: str | None) -> Family:
    """The family of that name, or the first one that can say all of `config`."""
    if name is not None:
        family = _family({"model_type": name})
        family.check_expresses(config)
        return family
    found = next((family for family in FAMILIES.values() if family.expresses(config)), None)
    check(found is not None, f"none of {', '.join(FAMILIES)} can say all of this model as it is written")
    return found


def _names(stored: WeightFolder, family: Family, tensors: Iterable[Tensor], folder: Path) -> dict[str, str]:
    """Where each tensor is stored: {its name: its name in the folder}."""
    bare = not any(name.startswith(family.prefix) for name in stored.names)
    wanted, names = {tensor.name for tensor in tensors}, {}
    for name in stored.names:
        called = family.prefix * (bare and name not in family.copies) + name
        for pattern, now in family.renamed:
            called = re.sub(pattern, now, called)
        if called in wanted or not any(re.search(pattern, called) for pattern in family.unread):
            names[called] = name
    for copy, original in family.copies.items():
        if copy in names and copy not in wanted:
            names.setdefault(original, names[copy])
            same = np.array_equal(stored.read(names[original]), stored.read(names.pop(copy)))
            check(same, f"{folder}: {copy} differs from {original}, and {_CONFIG} says that they are one tensor")
    missing, surplus = sorted(wanted - {*names, *family.absent}), sorted(set(names) - wanted)
    check(not missing, f"{folder} lacks {_listed(missing)}, which {_CONFIG} asks for")
    check(not surplus, f"{folder} has {_listed(surplus)}, for which {_CONFIG} has no place")
    return names


def _filled(
    path: str, leaf: jax.ShapeDtypeStruct, tensors: list[Tensor], stored: WeightFolder, names: dict[str, str]
) -> np.ndarray:
    """The leaf at `path`, of all tensors that hold parts of it."""
    array = _empty(leaf)
    for tensor in tensors:
        if any(part.path == path for part in tensor.leaves):
            there = tensor.name in names
            parts = tensor.split(stored.read(names[tensor.name]) if there else np.zeros(tensor.shape, np.float32))
            for part, values in zip(tensor.leaves, parts, strict=True):
                if part.path == path:
                    array[part.place] = values
    return array


def _empty(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Memory for a leaf, aligned as XLA wants it: on CPUs jax then takes the array as it is, without a copy."""
    size = leaf.size * leaf.dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(leaf.dtype).reshape(leaf.shape)


def _check_whole(tensors: Iterable[Tensor], leaves: dict[str, Any]) -> None:
    """ValueError unless the tensors make up every leaf, each part of it once, in its shape."""
    made = Counter((leaf.path, leaf.place) for tensor in tensors for leaf in tensor.leaves)
    axes = {path: len(place) for path, place in made}
    whole = {(path, place) for path in leaves for place in np.ndindex(np.shape(leaves[path])[: axes.get(path, 0)])}
    wrong = sorted({path for path, _ in set(made) ^ whole} | {path for (path, _), times in made.items() if times > 1})
    check(not wrong, f"the family's tensors do not make up each leaf once: {_listed(wrong)}")
    for tensor in tensors:
        for leaf in tensor.leaves:
            shape, found = tensor.leaf_shape(leaf), np.shape(leaves[leaf.path])[len(leaf.place) :]
            check(shape == found, f"{tensor.name} becomes {leaf.path} of shape {shape}, and the model's has {found}")


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
