"""Two transformers joined by cross attention: one reads a row, the other writes what follows from it.

Legend: B batch, S source length, T target length.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import EncoderDecoderConfig
from llm_jax.models.outputs import Output
from llm_jax.models.stack import Reports
from llm_jax.models.transformer import Memory, Transformer


class EncoderDecoder(nn.Module):
    """Source and target tokens in, scores of the target's next tokens out (Vaswani et al. 2017, arXiv:1706.03762, 3).

    Pure, as `Transformer`: `init(rng, source_BS, target_BT)`.
    """

    config: EncoderDecoderConfig
    precision: Precision = Precision()

    def setup(self):
        self.encoder = Transformer(self.config.encoder, self.precision)
        self.decoder = Transformer(self.config.decoder, self.precision)

    def __call__(
        self,
        source_BS: jax.Array,
        target_BT: jax.Array,
        source: SequenceInfo | None = None,
        target: SequenceInfo | None = None,
    ) -> Output:
        """Scores of the next token at every place of the target.

        Args:
          source_BS, target_BT: int32 token ids.
          source, target: where the tokens stand; None: each row is one document. Where rows are packed, a target reads
            the source of the same segment id.
        """
        return self.decode(target_BT, self.encode(source_BS, source), target)

    def encode(self, source_BS: jax.Array, source: SequenceInfo | None = None) -> Memory:
        """What the decoder reads of the source."""
        if source is None:
            source = SequenceInfo(jnp.broadcast_to(jnp.arange(source_BS.shape[1], dtype=jnp.int32), source_BS.shape))
        table = self.decoder if self.config.encoder.vocab_size is None else self.encoder
        output = self.encoder.run(table.embed.tokens(source_BS), source, tokens_BT=source_BS)
        return Memory(output.hidden_BTD, source, _under("encoder", output.reports))

    def decode(
        self,
        target_BT: jax.Array,
        memory: Memory | None = None,
        target: SequenceInfo | None = None,
        cache: Cache | None = None,
    ) -> Output:
        """Scores of the target's next tokens; with a cache from `allocate` only the first call needs the memory."""
        output = self.decoder(target_BT, target, cache, memory)
        read = {} if memory is None else memory.reports
        return dataclasses.replace(output, reports=read | _under("decoder", output.reports))

    def allocate(self, batch: int, slots: int, memory: int) -> Cache:
        """An empty cache for targets of up to `slots` tokens that read sources of `memory` tokens.

        Raises:
          ValueError: if the decoder has fewer positions than that, or its tokens see later ones.
        """
        # Outside of `apply` flax lets a module make another one only where it shall be none of its own.
        return Transformer(self.config.decoder, self.precision, parent=None).allocate(batch, slots, memory)


def _under(name: str, reports: Reports) -> Reports:
    return {f"{name}/{path}": report for path, report in reports.items()}
