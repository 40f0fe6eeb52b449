"""Calls models with the input names of transformers and returns what transformers returns as `logits`.

Legend: B batch, S source length, T length, P targets, C classes, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check
from llm_jax.interop.padding import check_padding, counts_tokens
from llm_jax.interop.permutation import permuted
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import Model
from llm_jax.models.config import TransformerConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import ClassHead
from llm_jax.models.inputs import Inputs

_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
_ORDER = {"perm_mask", "target_mapping"}
_TARGETS = {"input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"}


def forward(model: Model, params: Any, **inputs: np.ndarray) -> np.ndarray:
    """The `logits` of transformers, float32.

    Shapes: language models [B, T, V], or [B, P, V] with targets; classification [B, T, C] per token or [B, C] per
    sequence; replaced-token detection [B, T]; spans [B, T, 2], `start_logits` and `end_logits`.

    Args:
      inputs: as in `model_inputs`.

    Raises:
      ValueError: as `model_inputs`.
    """
    output = jax.jit(model.apply)({"params": params}, model_inputs(model, **inputs))
    logits = np.asarray(output.logits_BTV, np.float32)
    if "target_mapping" in inputs:
        logits = logits[:, -np.shape(inputs["target_mapping"])[1] :]
    head = model.config.stacks[-1].head
    if not isinstance(head, ClassHead):
        return logits
    if head.of == "sequence":
        return logits[:, 0]
    # ELECTRA's second model; that of ModernBERT keeps the axis of its one class.
    replaced = head.of == "token" and head.classes == 1 and head.transform is not None and head.transform.norm is None
    return logits[..., 0] if replaced else logits


def model_inputs(model: Model, **inputs: np.ndarray) -> Inputs:
    """The model's `Inputs`, from arguments of transformers' `forward`.

    Args:
      inputs: by transformers' names: `input_ids` [B, T], and optionally `attention_mask` [B, T], 0 for padding,
        `position_ids` and `token_type_ids` [B, T]. For an encoder-decoder `input_ids` [B, S], `decoder_input_ids`
        [B, T], and optionally `attention_mask` [B, S] and `decoder_attention_mask` [B, T]. For a model with targets
        optionally `perm_mask` [B, T, T] and `target_mapping` [B, P, T].

    Raises:
      ValueError: for an unknown input or missing token ids; for an id, a position or a type outside its table, a mask
        with values other than 0 and 1, and masks that define no prediction order; for padding on which the results of
        transformers depend.
    """
    config, pair = model.config, isinstance(model, EncoderDecoder)
    asks = isinstance(config, TransformerConfig) and config.embed.target
    known = _TARGETS if pair else _INPUTS | (_ORDER if asks else set())
    unknown = set(inputs) - known
    check(
        not unknown,
        f"forward has unknown inputs {', '.join(sorted(unknown))}: supported are {', '.join(sorted(known))}",
    )
    missing = {"input_ids", "decoder_input_ids"} & known - set(inputs)
    check(not missing, f"forward has no {' and no '.join(sorted(missing))}: the model requires it")
    order = {name: inputs[name] for name in _ORDER & set(inputs)}
    encoder, decoder = config.stacks[0], config.stacks[-1]
    stacks = {name: decoder if name.startswith("decoder_") else encoder for name in inputs if name not in order}
    given = {name: _checked(name, inputs[name], stack, decoder.vocab_size or 0) for name, stack in stacks.items()}
    check_padding(config, inputs)
    if pair:
        target = {name.removeprefix("decoder_"): array for name, array in given.items() if name.startswith("decoder_")}
        source = {name: array for name, array in given.items() if not name.startswith("decoder_")}
        encoder = Inputs(source["input_ids"], _sequence(source))
        return Inputs(target["input_ids"], _sequence(target), encoder=encoder)
    sequence = permuted(_sequence(given, counts_tokens(config)), **order)
    targets = sequence.positions_BT.shape[1] - given["input_ids"].shape[1]
    # Query-stream tokens have one vector whatever their id.
    return Inputs(jnp.pad(given["input_ids"], ((0, 0), (0, targets))), sequence)


def _checked(name: str, array: np.ndarray, stack: TransformerConfig, vocab_size: int) -> jax.Array:
    """An input as int32. ValueError for a value outside its table, which jax would clamp.

    Args:
      vocab_size: vocabulary size for a stack without an embedding table.
    """
    limits = {
        "input_ids": (stack.vocab_size or vocab_size, "the model's vocabulary"),
        "attention_mask": (2, "a mask"),
        "position_ids": (stack.max_length, "the model's positions"),
        "token_type_ids": (_types(stack), "the model's token types"),
    }
    limit, table = limits[name.removeprefix("decoder_")]
    check(limit > 0, f"{name} is given, but the model has no token types: remove it")
    found = np.asarray(array)
    check(
        found.ndim == 2 and found.size > 0 and np.issubdtype(found.dtype, np.number) | (found.dtype == bool),
        f"{name} has shape {found.shape} and type {found.dtype}: whole numbers [batch, length] are required",
    )
    wrong = found[(found < 0) | (found >= limit) | (found != np.floor(found))]
    check(
        not wrong.size,
        f"{name} holds {wrong[:1].tolist()[:1]}: values of {table} are whole numbers from 0 to {limit - 1}",
    )
    return jnp.asarray(found, jnp.int32)


def _types(stack: TransformerConfig) -> int:
    """Number of token types. XLNet only compares the types of two tokens, so it has no limit."""
    mixers = [block.mixer for segment in stack.segments for block in segment.blocks]
    compared = any(isinstance(mixer, RelativeAttentionConfig) for mixer in mixers)
    return np.iinfo(np.int32).max if compared else stack.embed.types


def _sequence(given: dict[str, jax.Array], counts_tokens: bool = False) -> SequenceInfo:
    """Positions and segment ids as transformers defines them."""
    shape = given["input_ids"].shape
    mask_BT = given["attention_mask"] if "attention_mask" in given else jnp.ones(shape, jnp.int32)
    if "position_ids" in given:
        positions_BT = given["position_ids"]
    elif counts_tokens:
        positions_BT = jnp.maximum(jnp.cumsum(mask_BT, axis=1) - 1, 0)
    else:
        positions_BT = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    # transformers uses the largest position of the batch, padding included, as the length of every sequence.
    lengths_BT = jnp.broadcast_to(jnp.max(positions_BT) + 1, shape)
    return SequenceInfo(positions_BT, mask_BT, given.get("token_type_ids"), fixed_lengths_BT=lengths_BT)
