"""Reads and writes checkpoints of Hugging Face's transformers: a folder with config.json and safetensors."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import trees
from llm_jax.core.checks import check, did_you_mean, given
from llm_jax.core.dtypes import Float, Precision
from llm_jax.core.files import read_json_object, write_atomically
from llm_jax.core.source import own_types
from llm_jax.interop import training
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import Family
from llm_jax.interop.mapping import Tensor
from llm_jax.interop.settings import Settings
from llm_jax.interop.weights import WeightFolder, write_folder
from llm_jax.models import count
from llm_jax.models.build import Model, abstract_parameters, build
from llm_jax.models.config import GeneratorDiscriminatorConfig, ModelConfig, TransformerConfig
from llm_jax.models.summary import short
from llm_jax.tokenizers import Tokenizer

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_TOKENIZER_FILES = (
    *(_GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt"),
    "chat_template.jinja",
)
_LISTED = 8
"""Largest number of names that a message lists."""
_DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}


def read_config(directory: str | Path) -> ModelConfig:
    """The model that a folder's config.json describes. If the folder has weights, only their names are read.

    Raises:
      ValueError: for a family or an option that is not supported, or of a wrong type or size; the message names it.
    """
    folder = Path(directory)
    options = _options(folder)
    if not any(folder.glob("*.safetensors")):
        return _read(folder, options)
    with WeightFolder(folder) as stored:
        return _read(folder, options, stored.names)


def load_hf(directory: str | Path, dtype: Float = "float32") -> tuple[Model, Any]:
    """The model of a folder and its parameters. Peak memory is the parameters, one leaf and one tensor.

    Args:
      dtype: dtype of parameters and computation, "float32" or "bfloat16", independent of the dtype of the files.

    Raises:
      ValueError: for a family or an option that is not supported, or of a wrong type or size; pickled or quantized
        weights; a missing, unexpected, misshapen or unreadable tensor; a value that `dtype` cannot represent. The
        message names it.
    """
    folder, precision = Path(directory), Precision(params=dtype, compute=dtype)
    options = _options(folder)
    leaves = {}
    with WeightFolder(folder) as stored:
        config = _read(folder, options, stored.names)
        # Checked before any array is allocated.
        tensors, names = _matched(stored, _family(options), config, folder)
        model = build(config, precision)
        abstract, _ = abstract_parameters(model)
        wanted = dict(trees.named_leaves(abstract))
        _check_whole(tensors, wanted)
        holding = _by_leaf(tensors)
        # Largest first: the temporary copies of the largest leaves are made while few other leaves are in memory.
        for path, leaf in sorted(wanted.items(), key=lambda item: -item[1].size):
            leaves[path] = jax.device_put(_filled(path, leaf, holding[path], stored, names))
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
    """Writes a folder that transformers' `from_pretrained` loads. Modules of `multi_token` are left out, and so is the
    generator of a discriminator: transformers does not run them.

    Args:
      family: a `model_type`; None: the first whose config.json can express the model.
      dtype: dtype of the files: "float32", "bfloat16" or "float16".
      shard_bytes: maximum size of a file; a larger tensor has a file of its own.
      tokenizer: the tokenizer to write for AutoTokenizer, or a transformers folder whose tokenizer is copied;
        config.json and generation_config.json state its special tokens. None: no tokenizer is written, and config.json
        states no special tokens.

    Raises:
      ValueError: if no family, or not `family`, can express the model; if the folder is not empty; for a value that
        `dtype` cannot represent; for a tokenizer that cannot be exported or has more tokens than the model. No files
        remain after an error.
    """
    config, params = _ordinary(model.config, params)
    if isinstance(tokenizer, Tokenizer):
        vocab_size = config.stacks[-1].vocab_size or 0
        check(
            tokenizer.vocab_size <= vocab_size,
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {vocab_size}: pass the tokenizer that the "
            "model was trained with",
        )
        tokenizer.pipeline()  # raises before anything is written if the tokenizer cannot be exported
    check(dtype in _DTYPES, f"dtype is {dtype!r}: it must be one of {', '.join(_DTYPES)}")
    found = _expressing(config, family)
    folder, kind = Path(directory), np.dtype(_DTYPES[dtype])
    leaves = dict(trees.named_leaves(params))
    tensors = {tensor.name: tensor for tensor in found.tensors(config)}
    _check_whole(tensors.values(), leaves)

    def tensor(name: str) -> np.ndarray:
        parts = [np.asarray(leaves[leaf.path][leaf.index]) for leaf in tensors[name].leaves]
        exact = tensors[name].join(parts)
        with np.errstate(over="ignore"):
            rounded = exact.astype(kind)
        check(
            _same_finite(rounded, exact), f"{name} has values too large for {dtype}: set dtype to bfloat16 or float32"
        )
        return rounded

    sizes = {name: kind.itemsize * int(np.prod(item.shape)) for name, item in tensors.items()}
    write_folder(folder, sizes, tensor, shard_bytes)
    facts = {"model_type": found.model_type, "architectures": [found.architecture], "torch_dtype": dtype}
    written = training.write(found, config)
    start = {name: written[name] for name in ("decoder_start_token_id",) if name in written}
    facts |= _write_tokenizer(tokenizer, folder, config.stacks[-1].max_length, start)
    # The family's options come last: some families count positions from their own pad token.
    options = facts | written
    write_atomically(folder / _CONFIG, json.dumps(options, indent=2, sort_keys=True) + "\n")


def _ordinary(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
    """What the ordinary forward pass needs of a model: config and parameters without the modules of `multi_token`, or
    those of the discriminator alone."""
    if isinstance(config, GeneratorDiscriminatorConfig):
        return config.discriminator, params["discriminator"]
    if not isinstance(config, TransformerConfig) or config.multi_token is None:
        return config, params
    kept = {name: part for name, part in params.items() if name != "multi_token"}
    return dataclasses.replace(config, multi_token=None), kept


def _write_tokenizer(
    tokenizer: Tokenizer | Path | None, folder: Path, max_length: int, start: dict[str, int]
) -> dict[str, int | None]:
    """Writes the tokenizer into `folder` and returns the options of config.json that state its special tokens.

    Args:
      start: the option that states how an encoder-decoder begins. transformers does not look for it in config.json if
        there is a generation_config.json.
    """
    # Without these options transformers uses the defaults of a class: ids of another vocabulary, which would end a
    # generation.
    special: dict[str, int | None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if isinstance(tokenizer, Tokenizer):
        special |= {f"{name}_token_id": token for name, token in dataclasses.asdict(tokenizer.special).items()}
        tokenizer.export(folder, max_length)
        write_atomically(folder / _GENERATION, json.dumps(special | start, indent=2) + "\n")
    elif tokenizer is not None:
        special |= {name: value for name, value in _options(tokenizer).items() if name in special}
        for file in (file for name in _TOKENIZER_FILES if (file := tokenizer / name).is_file()):
            write_atomically(folder / file.name, file.read_bytes())
    return special


def _options(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    check(path.exists(), f"{folder} has no {_CONFIG}: a folder written by save_pretrained is required")
    options = read_json_object(path, "download it again")
    check(
        options.setdefault("quantization_config") is None,
        f"{path} has quantization_config: quantized weights are not supported; use an unquantized checkpoint",
    )
    return options


def _read(folder: Path, options: dict[str, Any], tensors: Set[str] | None = None) -> ModelConfig:
    """The model that the options describe. Error messages start with the folder."""
    try:
        return training.read(_family(options), options, tensors)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _family(options: dict[str, Any]) -> Family:
    kind = Settings(options).given("model_type")
    check(
        kind in FAMILIES,
        f"{_CONFIG} has model_type {kind!r}: supported are {', '.join(FAMILIES)}{did_you_mean(str(kind), FAMILIES)}",
    )
    return FAMILIES[kind]


def _expressing(config: ModelConfig, name: str | None) -> Family:
    """The family called `name`, or the first that can express `config`."""
    own = ", ".join(kind.__name__ for kind in own_types(config))
    check(
        not own,
        f"the model has components of your own ({own}): only components of this package can be exported",
    )
    if name is not None:
        family = _family({"model_type": name})
        family.check_expresses(config)
        return family
    found = next((family for family in FAMILIES.values() if family.expresses(config)), None)
    return given(found, f"none of {', '.join(FAMILIES)} can express this model: change the model to export it")


def _matched(
    stored: WeightFolder, family: Family, config: ModelConfig, folder: Path
) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors that the config requires, and {name: name in the folder}.

    Raises:
      ValueError: for a tensor that is missing, unexpected or misshapen; for two stored tensors with the same name, or
        a copy that differs from its original.
    """
    names = _called(stored, family)
    borrowed = {original: copy for copy, original in family.copies.items() if copy in names and original not in names}
    tensors, missing = [], []
    size = f"in a model of {short(count.parameters(config))} parameters"
    # The check stops after a few missing tensors: with a wrong number of layers or experts, their list could exceed the
    # memory.
    for tensor in family.tensors(config):
        tensors.append(tensor)
        source = names.get(tensor.name) or names.get(borrowed.get(tensor.name, ""))
        if source is not None:
            shape = stored.shape(source)
            check(
                shape == tensor.shape,
                f"{folder}: tensor {tensor.name} has shape {list(shape)} and {_CONFIG} requires {list(tensor.shape)} "
                f"{size}: use the {_CONFIG} of these weights",
            )
        elif tensor.name not in family.absent:
            missing.append(tensor.name)
            check(
                len(missing) <= _LISTED,
                f"{folder} lacks {', '.join(missing)} and more, which {_CONFIG} requires {size}",
            )
    wanted = {tensor.name for tensor in tensors}
    missing += [original for original, copy in borrowed.items() if {original, copy} <= wanted]
    check(not missing, f"{folder} lacks {_listed(sorted(missing))}, which {_CONFIG} requires {size}")
    for copy, original in family.copies.items():
        if copy in names and copy not in wanted:
            names.setdefault(original, names[copy])
            same = np.array_equal(stored.read(names[original]), stored.read(names.pop(copy)))
            check(
                same,
                f"{folder}: {copy} and {original} differ, and {_CONFIG} ties them: set tie_word_embeddings to false",
            )
    unread = [name for name in set(names) - wanted if not any(re.search(one, name) for one in family.unread)]
    check(not unread, f"{folder} has {_listed(sorted(unread))}, which the model of {_CONFIG} does not have")
    return tensors, names


def _called(stored: WeightFolder, family: Family) -> dict[str, str]:
    """{the family's name of a stored tensor: its name in the folder}."""
    bare = not any(name.startswith(family.prefix) for name in stored.names)
    names: dict[str, str] = {}
    for name in sorted(stored.names):
        called = family.prefix * (bare and name not in family.copies) + name
        for pattern, now in family.renamed:
            called = re.sub(pattern, now, called)
        check(called not in names, f"{name} and {names.get(called)} are two names of {called}: remove one of them")
        names[called] = name
    return names


def _by_leaf(tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """{path of a leaf: the tensors that hold slices of it}."""
    found: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        for path in dict.fromkeys(leaf.path for leaf in tensor.leaves):
            found.setdefault(path, []).append(tensor)
    return found


def _filled(
    path: str, leaf: jax.ShapeDtypeStruct, tensors: list[Tensor], stored: WeightFolder, names: dict[str, str]
) -> np.ndarray:
    """The leaf at `path`, from the `tensors` that hold its slices. ValueError for a value that overflows its dtype."""
    array = _empty(leaf)
    for tensor in tensors:
        there = tensor.name in names
        parts = tensor.split(stored.read(names[tensor.name]) if there else np.zeros(tensor.shape, np.float32))
        for part, values in zip(tensor.leaves, parts, strict=True):
            if part.path == path:
                with np.errstate(over="ignore"):
                    array[part.index] = values
                narrower = jnp.finfo(leaf.dtype).max < jnp.finfo(values.dtype).max
                check(
                    not narrower or _same_finite(array[part.index], values),
                    f"{tensor.name} has {values.dtype} values too large for {leaf.dtype}: set dtype to float32, or "
                    "check the weights",
                )
    return array


def _same_finite(rounded: np.ndarray, exact: np.ndarray) -> bool:
    """Whether no finite value overflowed to infinity."""
    return bool((np.isfinite(rounded) | ~np.isfinite(exact)).all())


def _empty(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An empty array for a leaf, aligned to 64 bytes as XLA requires, so that jax uses it on CPUs without a copy."""
    size = leaf.size * leaf.dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(leaf.dtype).reshape(leaf.shape)


def _check_whole(tensors: Iterable[Tensor], leaves: dict[str, Any]) -> None:
    """ValueError unless the tensors hold every slice of every leaf exactly once, in its shape."""
    made = Counter((leaf.path, leaf.index) for tensor in tensors for leaf in tensor.leaves)
    axes = {path: len(index) for path, index in made}
    whole = {(path, index) for path in leaves for index in np.ndindex(np.shape(leaves[path])[: axes.get(path, 0)])}
    wrong = sorted({path for path, _ in set(made) ^ whole} | {path for (path, _), times in made.items() if times > 1})
    check(not wrong, f"the family's tensors do not hold every slice of these leaves once: {_listed(wrong)}")
    for tensor in tensors:
        for leaf in tensor.leaves:
            shape, found = tensor.leaf_shape(leaf), np.shape(leaves[leaf.path])[len(leaf.index) :]
            check(shape == found, f"{tensor.name} gives {leaf.path} the shape {shape}: the model requires {found}")


def _listed(names: list[str], most: int = _LISTED) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
