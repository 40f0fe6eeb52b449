"""Generation with a KV cache: one prefill of the prompts, then one compiled step per token.

Legend: B batch of prompts, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check_seed
from llm_jax.inference.cached_decoder import CachedDecoder
from llm_jax.inference.next_token import sample
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.models.build import Model
from llm_jax.models.inputs import Inputs
from llm_jax.sharding import partition


@flax.struct.dataclass
class _Progress:
    """State between decode steps, besides the cache. `seen_BV` is None without a repetition penalty."""

    tokens_B: jax.Array
    positions_B: jax.Array
    finished_B: jax.Array
    seen_BV: jax.Array | None


class Generator:
    """Continues prompts with a decoder, or writes the targets of sources with an encoder-decoder. Compiled functions
    are cached between calls.

    Args:
      eos_id: the token that ends a sequence; None: every sequence has the full length.
      pad_id: the token that a sequence yields after its end.
      vocab_size: number of the tokenizer's tokens, if the model's vocabulary is larger. Other tokens are never sampled.
      start: the first tokens of an encoder-decoder's decoder, see `CachedDecoder`; empty for a decoder.

    Raises:
      ValueError: as `CachedDecoder`.
    """

    def __init__(
        self,
        model: Model,
        sampling: SamplingConfig,
        eos_id: int | None,
        pad_id: int,
        vocab_size: int | None = None,
        start: Sequence[int] = (),
    ):
        self._decoder, self._sampling = CachedDecoder(model, eos_id, pad_id, vocab_size, start), sampling
        self._prefill = jax.jit(self._prefill_step, static_argnums=(2,))
        # The cache is donated, so that a step writes into it in place.
        self._decode = jax.jit(self._decode_step, donate_argnums=(1,))

    def stream(
        self, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Yields int32 [B], the next token of every sequence, until all have ended or have `new_tokens` new tokens.

        Args:
          prompts: what a decoder continues, or the sources of an encoder-decoder.

        Raises:
          ValueError: at the call, for an empty prompt, a token outside of the model's vocabulary, prompts that with
            `new_tokens` exceed the model's maximum length, or an invalid seed.
        """
        check_seed(seed=seed)
        return self._stream(params, self._decoder.inputs(prompts, new_tokens), new_tokens, seed)

    def _stream(self, params: Any, inputs: Inputs, new_tokens: int, seed: int) -> Iterator[np.ndarray]:
        params = self._decoder.prepared(params)
        # One forward pass over the prompts fills the cache and gives the first token of each.
        cache, progress = self._prefill(params, inputs, new_tokens, seed)
        for index in range(1, new_tokens):
            # The next step is dispatched before this one's tokens are read, so that the device does not wait.
            cache, following = self._decode(params, cache, progress, seed, index)
            yield np.asarray(progress.tokens_B)
            if np.asarray(progress.finished_B).all():
                return
            progress = following
        yield np.asarray(progress.tokens_B)

    def generate(
        self, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int = 0
    ) -> list[list[int]]:
        """The new tokens of every sequence, up to but without its end token."""
        columns, end = list(self.stream(params, prompts, new_tokens, seed)), self._decoder.eos_id
        rows = np.stack(columns, axis=1).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    def _prefill_step(self, params, inputs: Inputs, new_tokens, seed) -> tuple[Cache, _Progress]:
        cache, logits_BV, positions_B = self._decoder.prefill(params, inputs, new_tokens)
        batch, seen_BV = len(positions_B), None
        if self._sampling.repetition_penalty != 1.0:
            # A maximum, because a padding token may have the id of a token of the prompt.
            seen_BV = jnp.zeros((batch, self._decoder.vocab_size), bool)
            seen_BV = seen_BV.at[jnp.arange(batch)[:, None], inputs.ids_BT].max(inputs.located().real_BT)
        key = rng.key(seed, "sample")
        return cache, self._advance(logits_BV, positions_B, jnp.zeros(batch, bool), seen_BV, key)

    def _decode_step(self, params, cache, progress: _Progress, seed, index) -> tuple[Cache, _Progress]:
        cache, logits_BV = self._decoder.step(params, cache, progress.tokens_B, progress.positions_B)
        key = rng.key(seed, "sample", index)
        return cache, self._advance(logits_BV, progress.positions_B + 1, progress.finished_B, progress.seen_BV, key)

    def _advance(self, logits_BV, positions_B, finished_B, seen_BV, key) -> _Progress:
        tokens_B = jnp.where(finished_B, self._decoder.pad_id, sample(logits_BV, key, self._sampling, seen_BV))
        if self._decoder.eos_id is not None:
            finished_B |= tokens_B == self._decoder.eos_id
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        # Replicated, because every process reads them.
        return _Progress(partition.constrain(tokens_B), positions_B, partition.constrain(finished_B), seen_BV)
