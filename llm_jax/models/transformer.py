"""The one transformer: embedding, stack, final norm, head.

Legend: B batch, T length, D model width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dtypes import Precision
from llm_jax.layers.embed import Embed
from llm_jax.layers.linear import Linear
from llm_jax.layers.mixers.cache import Cache, empty_slots
from llm_jax.layers.mixers.context import Context
from llm_jax.layers.mixers.masks import Placement
from llm_jax.layers.positions.relative_bias import RelativeBias
from llm_jax.models.config import TiedHead, TransformerConfig
from llm_jax.models.outputs import Output
from llm_jax.models.stack import Stack
from llm_jax.sharding import axes
from llm_jax.sharding.partition import constrain


class Transformer(nn.Module):
    """Tokens in, next-token scores out.

    Pure: `init(rng, tokens_BT)` makes the parameter tree, `apply({"params": params}, tokens_BT, ...)` uses it.
    Dropout acts where `apply` is given `rngs={"dropout": key}`.
    """

    config: TransformerConfig
    precision: Precision = Precision()

    def setup(self):
        config = self.config
        self.embed = Embed(config.embed, config.vocab_size, config.max_length, config.width, self.precision)
        self.stack = Stack(config.segments, config.width, self.precision, config.execution)
        if config.relative_bias:
            self.relative_bias = RelativeBias(*config.relative_bias, self.precision)
        self.final_norm = config.final_norm.build(self.precision, None) if config.final_norm else lambda x_BTD: x_BTD
        if not isinstance(config.head, TiedHead):
            shape, words = (config.width, config.vocab_size), (axes.EMBED, axes.VOCAB)
            self.head = Linear("BTD,DV->BTV", shape, words, config.head.init, self.precision, config.head.bias)

    def __call__(self, tokens_BT: jax.Array, placement: Placement | None = None, cache: Cache | None = None) -> Output:
        """Scores of the next token at every place.

        Args:
          tokens_BT: int32 token ids.
          placement: where the tokens stand; None: each row is one document, begun here or in the cache.
          cache: earlier tokens, from `allocate`; the tokens of this call continue them.

        Raises:
          ValueError: for a row longer than the model's `max_length`.
        """
        output = self.hidden(tokens_BT, placement, cache)
        return output.replace(logits_BTV=self.unembed(output.hidden_BTD))

    def hidden(self, tokens_BT: jax.Array, placement: Placement | None = None, cache: Cache | None = None) -> Output:
        """As `__call__`, without the logits: a loss over a large vocabulary takes them chunk by chunk."""
        batch, length = tokens_BT.shape
        if length > self.config.max_length:
            raise ValueError(
                f"tokens have length {length} and the model's max_length is {self.config.max_length}: "
                "shorten the rows or raise model.max_length"
            )
        if placement is None:
            start = 0 if cache is None else cache.length
            placement = Placement(jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length)))
        x_BTD = self.embed(tokens_BT, placement.positions_BT)
        x_BTD = constrain(x_BTD, axes.BATCH, axes.LENGTH, axes.WIDTH)
        bias_RN = self.relative_bias() if self.config.relative_bias else None
        if cache is None:
            x_BTD, _ = self.stack(x_BTD, Context(placement, bias_RN=bias_RN))
        else:
            if placement.segment_ids_BT is None:
                placement = placement.replace(segment_ids_BT=jnp.ones((batch, length), jnp.int32))
            cache = cache.place(placement)
            context = Context(placement, cache.slots, cache.length, bias_RN=bias_RN)
            x_BTD, layers = self.stack(x_BTD, context, cache.layers)
            cache = cache.replace(layers=layers, length=cache.length + length)
        return Output(hidden_BTD=self.final_norm(x_BTD), cache=cache)

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 scores [B, T, V] of hidden states."""
        head = self.embed.attend if isinstance(self.config.head, TiedHead) else self.head
        logits_BTV = head(hidden_BTD).astype(jnp.float32)
        if self.config.head.softcap is not None:
            logits_BTV = self.config.head.softcap * jnp.tanh(logits_BTV / self.config.head.softcap)
        return constrain(logits_BTV, axes.BATCH, axes.LENGTH, axes.VOCAB)

    @property
    def unembed_parameters(self) -> tuple[str, ...]:
        """Names of the parameter sub-trees that `unembed` reads."""
        return ("embed",) if isinstance(self.config.head, TiedHead) else ("head",)

    def allocate(self, batch: int, slots: int) -> Cache:
        """An empty cache for rows of up to `slots` tokens.

        Raises:
          ValueError: if the model has fewer positions than that.
        """
        if slots > self.config.max_length:
            raise ValueError(
                f"a cache of {slots} tokens exceeds the model's max_length of {self.config.max_length}: "
                "ask for fewer new tokens or give a shorter prompt"
            )
        layers = tuple(
            tuple(
                tuple(block.allocate(batch, slots, 0, self.precision.dtype) for block in segment.blocks)
                for _ in range(segment.repeats)
            )
            for segment in self.config.segments
        )
        return Cache(layers, empty_slots(batch, slots), jnp.zeros((), jnp.int32))
