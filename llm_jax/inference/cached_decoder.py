"""Decoding with a KV cache: one forward pass over the prompts, then one token of every sequence at a time.

Legend: B batch, P padded length of the decoder's prompts, S padded length of the sources, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.checks import check, given
from llm_jax.inference.prompts import check_prompts, padded
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.layers.roles import Role, roles_of
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import Model, applied, boxed_parameters
from llm_jax.models.config import MAKE_CAUSAL, EncoderDecoderConfig, ModelConfig, TransformerConfig
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution, unstack, unstacked

_ROUNDED = (Role.MATRIX, Role.EXPERT, Role.READOUT, Role.EMBEDDING, Role.CONVOLUTION)


def in_compute_type(params: Any, roles: Any, dtype: jnp.dtype) -> Any:
    """Parameters with all matrices cast to `dtype`, so that a step reads them in the dtype in which it computes.

    Every use of a matrix casts it to `dtype` anyway, except for routers. Routers, vectors and small tables keep their
    dtype: expert scores, norms, decay rates and attention biases are computed in float32, and rounded parameters would
    change them.

    Args:
      roles: tree of the parameters' roles (layers/roles.py).
    """
    return jax.tree.map(lambda role, leaf: leaf.astype(dtype) if role in _ROUNDED else leaf, roles, params)


class CachedDecoder:
    """A model prepared for decoding: `prefill` reads the prompts into a cache, `step` reads one more token of each.

    The prompts of a decoder are what it continues. Those of an encoder-decoder are the sources: the prefill runs the
    encoder once, whose output goes into the cache, and the decoder begins with `start`.

    Args:
      eos_id: the token that ends a sequence; None: none does.
      pad_id: the token of padding.
      vocab_size: number of the tokenizer's tokens, if the model's vocabulary is larger. Other tokens have no logits.
      start: the first tokens of an encoder-decoder's decoder; empty for a decoder. T5 and Marian: the padding token.
        BART: eos, and then the token that transformers calls `forced_bos_token_id`, where there is one.

    Raises:
      ValueError: for a model that cannot decode autoregressively, a vocabulary larger than the model's, or an end,
        padding or start token outside of it.
    """

    def __init__(
        self, model: Model, eos_id: int | None, pad_id: int, vocab_size: int | None = None, start: Sequence[int] = ()
    ):
        check_can_decode(model)
        self._given, self.eos_id, self.pad_id, self._start = model, eos_id, pad_id, tuple(start)
        decoder = model.config.stacks[-1]
        self._segments = decoder.segments
        self._scored = given(decoder.vocab_size, "the model has no vocabulary: generation requires vocab_size")
        self.vocab_size = self._scored if vocab_size is None else vocab_size
        self._check_special(vocab_size)
        in_place = dataclasses.replace(decoder, segments=unstacked(decoder.segments), execution=Execution())
        self._model = model.clone(config=_with_decoder(model.config, in_place))
        # One array for each layer: from a stack every step would copy each layer's weights (experiments/LOG.md).
        self._unstack = jax.jit(lambda stack: unstack(stack, self._segments))

    def prepared(self, params: Any) -> Any:
        """The model's parameters as `prefill` and `step` read them: cast, and one array for each layer."""
        params = in_compute_type(params, self._roles, self._model.precision.dtype)
        apart = lambda decoder: decoder | {"stack": self._unstack(decoder["stack"])}  # noqa: E731
        return params | {"decoder": apart(params["decoder"])} if self._is_pair else apart(params)

    def inputs(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Inputs:
        """Padded prompts, numpy int32 [B, P], of an encoder-decoder [B, S].

        Raises:
          ValueError: for an empty prompt, a token outside of the model's vocabulary, or prompts that with `new_tokens`
            exceed the model's maximum length.
        """
        check(new_tokens >= 1, f"new_tokens is {new_tokens}: it must be at least 1")
        check_prompts(prompts, self._given.config.stacks[0].vocab_size or self._scored)
        if not self._is_pair:
            return padded(prompts, self.pad_id, self._room(prompts, new_tokens))
        limit, longest = self._given.config.stacks[0].max_length, max(map(len, prompts))
        check(
            longest <= limit,
            f"the longest source has {longest} tokens and the encoder's max_length is {limit}: shorten it",
        )
        starts = [self._start] * len(prompts)
        self._room(starts, new_tokens)
        decoder = padded(starts, self.pad_id, len(self._start))
        return dataclasses.replace(decoder, encoder=padded(prompts, self.pad_id, limit))

    def prefill(self, params: Any, inputs: Inputs, new_tokens: int) -> tuple[Cache, jax.Array, jax.Array]:
        """Reads the prompts.

        Args:
          inputs: from `inputs`.
          new_tokens: number of tokens for which the cache has space.

        Returns:
          The cache, the logits of the first new token, float32 [B, V], and its position, int32 [B].
        """
        batch, length = inputs.shape
        sources = 0 if inputs.encoder is None else inputs.encoder.shape[1]
        cache = self._model.allocate(batch, length + new_tokens, sources)
        if self._given.config.stacks[-1].prefixed and inputs.encoder is None:
            # A model that was trained with prefixes reads its prompt as one.
            sequence = inputs.located()
            sequence = dataclasses.replace(sequence, prefix_BT=sequence.real_BT)
            inputs = dataclasses.replace(inputs, sequence=sequence)
        output = self._hidden(params, inputs, cache)
        # Prompts are padded on the right. The next token follows the last real one of each.
        positions_B = inputs.located().documents_BT.sum(axis=1)
        last_B1D = jnp.take_along_axis(output.hidden_BTD, (positions_B - 1)[:, None, None], axis=1)
        return output.cache, self._logits(params, last_B1D), positions_B

    def step(self, params: Any, cache: Cache, tokens_B: jax.Array, positions_B: jax.Array) -> tuple[Cache, jax.Array]:
        """Reads one more token of every sequence, at `positions_B`. Returns cache and logits [B, V] of the next.

        All sequences write the same cache position, after the padding; positions continue those of each prompt.
        """
        positions_B1 = positions_B[:, None]
        inputs = Inputs(tokens_B[:, None], SequenceInfo(positions_B1, jnp.ones_like(positions_B1)))
        output = self._hidden(params, inputs, cache)
        return output.cache, self._logits(params, output.hidden_BTD)

    @property
    def _is_pair(self) -> bool:
        return isinstance(self._given, EncoderDecoder)

    @functools.cached_property
    def _roles(self) -> Any:
        return roles_of(boxed_parameters(self._given))

    def _hidden(self, params: Any, inputs: Inputs, cache: Cache) -> Any:
        return applied(self._model, params, inputs, cache, method="hidden")

    def _logits(self, params: Any, hidden_B1D: jax.Array) -> jax.Array:
        return applied(self._model, params, hidden_B1D, method="unembed")[:, 0, : self.vocab_size]

    def _room(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """Number of tokens that the decoder can have before `new_tokens`. ValueError if a prompt has more."""
        limit, longest = self._given.config.stacks[-1].max_length, max(map(len, prompts))
        room = limit - new_tokens
        if longest > room:
            raise ValueError(
                f"the longest prompt has {longest} tokens and new_tokens is {new_tokens}: the model's max_length is "
                f"{limit}; shorten the prompt, or set new_tokens to at most {max(0, limit - longest)}"
            )
        return room

    def _check_special(self, vocab_size: int | None) -> None:
        check(
            1 <= self.vocab_size <= self._scored,
            f"vocab_size is {vocab_size} and the model's is {self._scored}: it must not exceed the model's; use the "
            "tokenizer that the model was trained with",
        )
        special = [("eos_id", self.eos_id, self.vocab_size), ("pad_id", self.pad_id, self.vocab_size)]
        for name, token, size in special + [("start", token, self._scored) for token in self._start]:
            check(
                token is None or 0 <= token < size,
                f"{name} is {token}: it must be a token of the vocabulary, from 0 to {size - 1}",
            )
        check(
            self._is_pair == (len(self._start) > 0),
            f"start is {self._start} and the model is of type {type(self._given).__name__}: an EncoderDecoder requires "
            "the first tokens of its decoder, and a decoder has none, because its prompt begins the sequence",
        )


def check_can_decode(model: Model) -> None:
    """
    Raises:
      ValueError: if the model cannot write a sequence token by token.
    """
    config = model.config.stacks[-1]
    check(
        isinstance(model, EncoderDecoder) or not config.has_cross_attention,
        "the model requires the output of an encoder, and is a decoder alone: use the whole EncoderDecoder",
    )
    check(
        config.causal,
        f"{' and '.join(config.non_causal)} of the model is not causal: generation token by token requires a "
        f"causal model; {MAKE_CAUSAL}",
    )
    check(
        isinstance(config.head, HeadConfig | TiedHead),
        f"the model's head is {type(config.head).__name__}: generation requires HeadConfig or TiedHead",
    )


def _with_decoder(config: ModelConfig, decoder: TransformerConfig) -> ModelConfig:
    return dataclasses.replace(config, decoder=decoder) if isinstance(config, EncoderDecoderConfig) else decoder
