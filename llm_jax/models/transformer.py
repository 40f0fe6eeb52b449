"""The transformer: embedding, stack, final norm, head.

Legend: B batch, T length, S length of an encoder's sequence, D model width, E width of the table, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.checks import check
from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.kv_cache import Cache, empty_slots
from llm_jax.layers.context import Context
from llm_jax.layers.embed import Embed
from llm_jax.layers.positions.relative_bias import RelativeBias
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.layers.tap import tap
from llm_jax.models.config import TransformerConfig
from llm_jax.models.heads import ClassHead, Head, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.outputs import Output
from llm_jax.models.stack import Stack
from llm_jax.sharding import axes, partition
from llm_jax.sharding.partition import constrain


class Transformer(nn.Module):
    """Decoder or encoder: tokens -> scores of the next tokens, of masked tokens, or of classes, depending on objective
    and head.

    `init(rng, inputs)` creates the parameters and `apply({"params": params}, inputs)` uses them. Dropout is active if
    `apply` gets `rngs={"dropout": key}`.
    """

    config: TransformerConfig
    precision: Precision = Precision()

    def setup(self):
        config = self.config
        self.embed = Embed(config.embed, config.vocab_size, config.max_length, config.width, self.precision)
        self.stack = Stack(config.segments, config.width, self.precision, config.execution)
        if config.relative_bias:
            self.relative_bias = RelativeBias(*config.relative_bias, self.precision)
        # Without a name: in `setup` flax names a module after its attribute.
        self.final_norm = config.final_norm.build(self.precision, None) if config.final_norm else lambda x_BTD: x_BTD
        self.drop = nn.Dropout(config.dropout)
        if config.head:
            table = config.embed.table_width(config.width)
            self.head = Head(config.head, config.width, config.vocab_size or 0, table, self.precision)
        if config.multi_token:
            remat = dataclasses.replace(config.execution, remat=config.execution.remat_of(len(config.segments) - 1))
            segment = config.multi_token.segment(config.segments)
            self.multi_token = config.multi_token.build(segment, config.width, self.precision, remat)

    def __call__(self, inputs: Inputs | jax.Array, cache: Cache | None = None) -> Output:
        """Hidden states and scores of every token.

        Args:
          inputs: inputs of the model; an array is token ids, int32 [B, T].
          cache: KV cache of earlier tokens, from `allocate`, which the tokens of this call continue.

        Raises:
          ValueError: if a sequence is longer than `max_length`, or its length does not divide over the devices that
            shard it; if a factorization order or a prefix is given and the mixers do not follow it; if the encoder
            output is missing, or given to a model without cross-attention; if inputs of an encoder are given.
        """
        if self.is_initializing() and self.config.multi_token:
            return self.scored(self.multi_token_hidden(inputs)[0])
        return self.scored(self.hidden(inputs, cache))

    def multi_token_hidden(self, inputs: Inputs | jax.Array) -> tuple[Output, tuple[jax.Array, ...]]:
        """`hidden`, and the hidden states [B, T, D] from which `unembed` predicts the token after the next one, the one
        after that, and so on: `config.multi_token.tokens` - 1 arrays, none if the model has no such modules. The
        routing statistics of their MoE layers are in `Output.aux`.

        Raises:
          ValueError: as `__call__`; if the modules read tokens, and inputs are features.
        """
        inputs = Inputs.of(inputs)
        output = self.hidden(inputs)
        if self.config.multi_token is None:
            return output, ()
        sequence = inputs.located()
        embedded = lambda ids_BT: self.embed(self.embed.tokens(ids_BT), sequence)  # noqa: E731
        hidden, aux = self.multi_token(output, self._context(inputs, sequence), embedded, self._normed)
        aux = output.aux | {f"multi_token/{path}": one for path, one in aux.items()}
        return dataclasses.replace(output, aux=aux), hidden

    def hidden(self, inputs: Inputs | jax.Array, cache: Cache | None = None) -> Output:
        """`__call__` without the scores: a loss over a large vocabulary computes them in chunks."""
        inputs = Inputs.of(inputs)
        if inputs.features_BTE is None:
            check(
                self.config.vocab_size is not None,
                "the model has no vocabulary (vocab_size is None): pass inputs.features_BTE instead of tokens_BT",
            )
        x_BTE = self.embed.tokens(inputs.ids_BT) if inputs.features_BTE is None else inputs.features_BTE
        return self.run(x_BTE, inputs, cache)

    def run(self, x_BTE: jax.Array, inputs: Inputs, cache: Cache | None = None) -> Output:
        """`hidden` with `x_BTE` as the token embeddings, for example from the table of another model."""
        self._check(inputs, cache)
        sequence = inputs.located(0 if cache is None else cache.length)
        encoded = inputs.encoded
        # Empty cache positions and padding of the encoder are masked by their segment id 0, so tokens need ids as well.
        if cache is not None or encoded is not None:
            sequence = _with_segments(sequence)
        context = self._context(inputs, sequence)
        if encoded is not None:
            context = dataclasses.replace(
                context, encoded=_with_segments(encoded.sequence), encoded_BSD=encoded.hidden_BSD
            )
        # Embedding, blocks, final norm. The head is apart (`scored`), because a loss may compute its scores in chunks.
        x_BTD = constrain(self.embed(x_BTE, sequence), axes.BATCH, axes.STREAM, axes.WIDTH)
        tap(self, "embedded", lambda: x_BTD)
        if cache is None:
            x_BTD, _, aux, trunk_BTD = self.stack(x_BTD, context)
        else:
            # Before the layers run: tokens of this call attend to their own cache positions.
            cache = cache.place(sequence)
            cache = cache if encoded is None else dataclasses.replace(cache, encoded=context.encoded)
            context = dataclasses.replace(context, slots=cache.slots, slot=cache.length, encoded=cache.encoded)
            x_BTD, layers, aux, trunk_BTD = self.stack(x_BTD, context, cache.layers)
            cache = dataclasses.replace(cache, layers=layers, length=cache.length + x_BTD.shape[1])
        aux = {f"stack/{path}": one for path, one in aux.items()}
        hidden_BTD = self._normed(x_BTD)
        tap(self, "last_hidden", lambda: hidden_BTD)
        read = self.config.multi_token is not None and self.config.multi_token.reads_trunk
        return Output(hidden_BTD=hidden_BTD, cache=cache, aux=aux, trunk_BTD=trunk_BTD if read else None)

    def _context(self, inputs: Inputs, sequence: SequenceInfo) -> Context:
        """What all layers read beside the residual stream."""
        bias_RN = self.relative_bias() if self.config.relative_bias else None
        return Context(sequence, tokens_BT=inputs.tokens_BT, bias_RN=bias_RN)

    def _normed(self, x_BTD: jax.Array) -> jax.Array:
        return self.drop(self.final_norm(x_BTD), deterministic=not self.has_rng("dropout"))

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 scores of hidden states, as in `Output.logits_BTV`."""
        word = axes.CLASSES if isinstance(self.config.head, ClassHead) else axes.VOCAB
        logits_BTV = constrain(self.head(hidden_BTD, self.embed.attend), axes.BATCH, axes.LENGTH, word)
        tap(self, "logits", lambda: logits_BTV)
        return logits_BTV

    def scored(self, output: Output) -> Output:
        """`output` with the scores of its hidden states, if the model has a head."""
        return dataclasses.replace(output, logits_BTV=self.unembed(output.hidden_BTD)) if self.config.head else output

    def unembed_parameters(self, params: Any) -> Any:
        """The subset of the model's parameters that `unembed` reads."""
        head = self.config.head
        tied = isinstance(head, TiedHead)
        # No more than it reads: the chunked loss carries a float32 gradient of each of these parameters through its
        # loop.
        names = ("embed",) * tied + ("head",) * (not tied or head.bias or head.transform is not None)
        return {name: params[name] for name in names}

    def allocate(self, batch: int, slots: int, encoder_length: int = 0) -> Cache:
        """An empty KV cache for sequences of up to `slots` tokens and `encoder_length` encoder tokens.

        Raises:
          ValueError: if `slots` exceeds `max_length`, or the model is not causal.
        """
        check(
            self.config.causal,
            f"{' and '.join(self.config.non_causal)} of the model is not causal: a KV cache requires a causal model; "
            "run whole sequences without a cache",
        )
        if slots > self.config.max_length:
            raise ValueError(
                f"a cache of {slots} tokens exceeds the model's max_length of {self.config.max_length}: reduce the "
                "number of new tokens or shorten the prompt"
            )
        layers = tuple(
            tuple(
                tuple(block.allocate(batch, slots, encoder_length, self.precision.dtype) for block in segment.blocks)
                for _ in range(segment.repeats)
            )
            for segment in self.config.segments
        )
        encoded = empty_slots(batch, encoder_length) if self.config.has_cross_attention else None
        return Cache(layers, empty_slots(batch, slots, self.config.prefixed), jnp.zeros((), jnp.int32), encoded)

    def _check(self, inputs: Inputs, cache: Cache | None) -> None:
        config, (_, length) = self.config, inputs.shape
        if length > config.max_length:
            raise ValueError(
                f"inputs have {length} tokens and the model's max_length is {config.max_length}: shorten the sequences "
                "or raise model.max_length"
            )
        parts = partition.parts(axes.LENGTH)
        check(
            # Parameters are created with one token.
            cache is not None or length == 1 or length % parts == 0,
            f"inputs have {length} tokens and sequences are divided over {parts} devices: set the length to a "
            f"multiple of {parts}, or reduce mesh.context",
        )
        check(
            inputs.sequence is None or inputs.sequence.order_BT is None or config.permuted,
            "inputs.sequence has order_BT, and not every mixer has the mask Permuted: tokens would attend to the "
            "tokens that they predict; remove order_BT",
        )
        check(
            inputs.sequence is None or inputs.sequence.prefix_BT is None or config.prefixed,
            "inputs.sequence has prefix_BT, and not every mixer has the mask PrefixCausal: the others would ignore it; "
            "remove prefix_BT, or use `model.with_mask(PrefixCausal())`",
        )
        check(
            inputs.encoder is None,
            "inputs have an `encoder`, and the model is a single stack: pass its output as `encoded`, or use an "
            "EncoderDecoder",
        )
        check(
            inputs.encoded is None or config.has_cross_attention,
            "inputs have the output of an encoder, and no block of the model has `cross` attention: remove it",
        )
        check(
            inputs.encoded is not None or cache is not None or not config.has_cross_attention,
            "blocks have `cross` attention and inputs have no `encoded`: pass the output of an encoder",
        )


def _with_segments(sequence: SequenceInfo) -> SequenceInfo:
    """`sequence` with segment ids; each sequence is one document if it has none."""
    if sequence.segment_ids_BT is not None:
        return sequence
    return dataclasses.replace(sequence, segment_ids_BT=jnp.ones_like(sequence.positions_BT))
