"""The one transformer: embedding, stack, final norm, head.

Legend: B batch, T length, S length of another row that is read, D model width, E width of the table, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import flax.struct
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
from llm_jax.models.outputs import Output
from llm_jax.models.stack import Reports, Stack
from llm_jax.sharding import axes, partition
from llm_jax.sharding.partition import constrain


@flax.struct.dataclass
class Memory:
    """What cross attention reads.

    Attributes:
      hidden_BSD: hidden states of an encoder.
      placement: where its tokens stand; a token reads those of its own document, by segment id.
      reports: what layers of experts told while they were made; see `Output`.
    """

    hidden_BSD: jax.Array
    placement: SequenceInfo
    reports: Reports = flax.struct.field(default_factory=dict)


class Transformer(nn.Module):
    """Tokens in, scores out: of the next token, of the token that was masked, of classes, as the head says.

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
        self.drop = nn.Dropout(config.dropout)
        if config.head:
            table = config.embed.table_width(config.width)
            self.head = Head(config.head, config.width, config.vocab_size or 0, table, self.precision)

    def __call__(
        self,
        tokens_BT: jax.Array,
        placement: SequenceInfo | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Output:
        """Scores at every place.

        Args:
          tokens_BT: int32 token ids.
          placement: where the tokens stand; None: each row is one document, begun here or in the cache.
          cache: earlier tokens, from `allocate`; the tokens of this call continue them.
          memory: what cross attention reads; with a cache only the first call is given it.

        Raises:
          ValueError: for a row longer than the model's `max_length`, or whose length does not divide over the devices
            that it is divided over; for an order of prediction where mixers follow
            none; for a memory missing, or given to a model that has no cross attention.
        """
        return self.scored(self.hidden(tokens_BT, placement, cache, memory))

    def hidden(
        self,
        tokens_BT: jax.Array,
        placement: SequenceInfo | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
    ) -> Output:
        """As `__call__`, without the scores: a loss over a large vocabulary takes them chunk by chunk."""
        return self.run(self.embed.tokens(tokens_BT), placement, cache, memory, tokens_BT)

    def run(
        self,
        x_BTE: jax.Array,
        placement: SequenceInfo | None = None,
        cache: Cache | None = None,
        memory: Memory | None = None,
        tokens_BT: jax.Array | None = None,
    ) -> Output:
        """As `hidden`, from the vectors of the tokens, and their ids if they have such."""
        batch, length = x_BTE.shape[:2]
        self._check(length, placement, cache, memory)
        if placement is None:
            start = 0 if cache is None else cache.length
            placement = SequenceInfo(jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length)))
        if cache is not None or memory is not None:
            placement = _whole(placement)
        bias_RN = self.relative_bias() if self.config.relative_bias else None
        context = Context(placement, tokens_BT=tokens_BT, bias_RN=bias_RN)
        if memory is not None:
            context = dataclasses.replace(context, memory=_whole(memory.placement), memory_BSD=memory.hidden_BSD)
        x_BTD = constrain(self.embed(x_BTE, placement), axes.BATCH, axes.STREAM, axes.WIDTH)
        tap(self, "embedded", lambda: x_BTD)
        if cache is None:
            x_BTD, _, reports = self.stack(x_BTD, context)
        else:
            cache = cache.place(placement)
            cache = cache if memory is None else dataclasses.replace(cache, memory=context.memory)
            context = dataclasses.replace(context, slots=cache.slots, slot=cache.length, memory=cache.memory)
            x_BTD, layers, reports = self.stack(x_BTD, context, cache.layers)
            cache = dataclasses.replace(cache, layers=layers, length=cache.length + length)
        reports = {f"stack/{path}": report for path, report in reports.items()}
        hidden_BTD = self.drop(self.final_norm(x_BTD), deterministic=not self.has_rng("dropout"))
        tap(self, "last_hidden", lambda: hidden_BTD)
        return Output(hidden_BTD=hidden_BTD, cache=cache, reports=reports)

    def unembed(self, hidden_BTD: jax.Array) -> jax.Array:
        """Float32 scores of hidden states, as in `Output.logits_BTV`."""
        word = axes.CLASSES if isinstance(self.config.head, ClassHead) else axes.VOCAB
        logits_BTV = constrain(self.head(hidden_BTD, self.embed.attend), axes.BATCH, axes.LENGTH, word)
        tap(self, "logits", lambda: logits_BTV)
        return logits_BTV

    def scored(self, output: Output) -> Output:
        """With the scores of its hidden states, where the model has a head."""
        return dataclasses.replace(output, logits_BTV=self.unembed(output.hidden_BTD)) if self.config.head else output

    @property
    def unembed_parameters(self) -> tuple[str, ...]:
        """Names of the parameter sub-trees that `unembed` reads."""
        head = self.config.head
        tied = isinstance(head, TiedHead)
        return ("embed",) * tied + ("head",) * (not tied or head.bias or head.transform is not None)

    def allocate(self, batch: int, slots: int, memory: int = 0) -> Cache:
        """An empty cache for rows of up to `slots` tokens that read `memory` tokens of an encoder.

        Raises:
          ValueError: if the model has fewer positions than that, or its tokens see later ones.
        """
        check(
            self.config.causal,
            f"tokens are told of later ones by {' and '.join(self.config.looking_ahead)}, and a cache does not hold "
            "them yet: give the model whole rows",
        )
        if slots > self.config.max_length:
            raise ValueError(
                f"a cache of {slots} tokens exceeds the model's max_length of {self.config.max_length}: "
                "ask for fewer new tokens or give a shorter prompt"
            )
        layers = tuple(
            tuple(
                tuple(block.allocate(batch, slots, memory, self.precision.dtype) for block in segment.blocks)
                for _ in range(segment.repeats)
            )
            for segment in self.config.segments
        )
        seen = empty_slots(batch, memory) if self.config.reads_memory else None
        return Cache(layers, empty_slots(batch, slots), jnp.zeros((), jnp.int32), seen)

    def _check(self, length: int, placement: SequenceInfo | None, cache: Cache | None, memory: Memory | None) -> None:
        if length > self.config.max_length:
            raise ValueError(
                f"tokens have length {length} and the model's max_length is {self.config.max_length}: "
                "shorten the rows or raise model.max_length"
            )
        parts = partition.parts(axes.LENGTH)
        check(
            # One token is what parameters are made with.
            cache is not None or length == 1 or length % parts == 0,
            f"tokens have length {length} and rows are divided over {parts} devices: make it a multiple of {parts}, or "
            "mesh.context smaller",
        )
        check(
            placement is None or placement.order_BT is None or self.config.permuted,
            "placement has order_BT, and not every mixer has the mask Permuted: tokens would see those that they shall "
            "predict; leave it out",
        )
        check(
            memory is None or self.config.reads_memory,
            "a memory was given, and no block has `cross` attention that would read it: leave it out",
        )
        check(
            memory is not None or cache is not None or not self.config.reads_memory,
            "blocks have `cross` attention and no memory was given: it has nothing to read; pass what an encoder made",
        )


def _whole(placement: SequenceInfo) -> SequenceInfo:
    """With segment ids: all one document where there are none."""
    if placement.segment_ids_BT is not None:
        return placement
    return dataclasses.replace(placement, segment_ids_BT=jnp.ones_like(placement.positions_BT))
