"""Beam search, and diverse beam search, with a KV cache.

Legend: B batch of prompts, G groups, W beams of a group, C candidates, R = G * B * W rows of the cache in this order,
N new tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.inference.beam_config import BeamConfig
from llm_jax.inference.cached_decoder import CachedDecoder
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.models.build import Model
from llm_jax.models.inputs import Inputs
from llm_jax.sharding import partition


class Hypothesis(NamedTuple):
    """A sequence that beam search has found."""

    tokens: list[int]
    """New tokens, without eos."""
    score: float
    """As `BeamConfig` defines it."""


@flax.struct.dataclass
class Beams:
    """State of the searches between steps, besides the cache. Outside of `advanced` arrays have a first axis of groups.

    Attributes:
      tokens_BWN: int32, the sequences that the search continues, best first, filled with the padding token.
      parents_BW: int32, which sequence of the step before each of them continues.
      sums_BW: float32, sum of the log-probabilities of their tokens; -inf: there is no such sequence.
      ended_BWN: int32, the best hypotheses, best first, with their eos.
      scores_BW: float32, their scores; -inf: there is no such hypothesis.
      open_B: bool, whether hypotheses may still be added.
    """

    tokens_BWN: jax.Array
    parents_BW: jax.Array
    sums_BW: jax.Array
    ended_BWN: jax.Array
    scores_BW: jax.Array
    open_B: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, ...], new_tokens: int, pad_id: int) -> "Beams":
        """One sequence without tokens for each search. `shape`: (..., B, W)."""
        tokens = jnp.full((*shape, new_tokens), pad_id, jnp.int32)
        none = jnp.full(shape, -jnp.inf, jnp.float32)
        parents, is_open = jnp.zeros(shape, jnp.int32), jnp.ones(shape[:-1], bool)
        return cls(tokens, parents, none.at[..., 0].set(0.0), tokens, none, is_open)


def advanced(
    beams: Beams, log_p_BWV: jax.Array, index: jax.Array | int, config: BeamConfig, eos_id: int | None
) -> Beams:
    """One step of beam search (Graves 2012, arXiv:1211.3711, 2.5, with sequences of equal length), as transformers'
    `generate` takes it.

    Args:
      log_p_BWV: float32, log-probabilities of the next token of each sequence.
      index: number of tokens that the sequences have.
      config: static; `beams` and `groups` are not read.
      eos_id: static.
    """
    (batch, width, vocab), new_tokens = log_p_BWV.shape, beams.tokens_BWN.shape[-1]
    # A sequence ends with one token only, so that at least W of 2 W candidates are unfinished.
    sums_BC, flat_BC = jax.lax.top_k((beams.sums_BW[..., None] + log_p_BWV).reshape(batch, -1), width * min(2, vocab))
    parents_BC, words_BC = flat_BC // vocab, flat_BC % vocab
    tokens_BCN = _taken(beams.tokens_BWN, parents_BC).at[:, :, index].set(words_BC)
    ends_BC = jnp.zeros(words_BC.shape, bool) if eos_id is None else words_BC == eos_id
    sums_BW, going_BW = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, sums_BC), width)

    # Only the best W candidates may end; the others replace them among the unfinished sequences.
    ends_BC = (ends_BC | (index + 1 == new_tokens)) & (jnp.arange(words_BC.shape[1]) < width) & beams.open_B[:, None]
    length = _length(index + 1, config)
    found_BC = jnp.where(ends_BC, sums_BC / length, -jnp.inf)
    scores_BW, best_BW = jax.lax.top_k(jnp.concatenate([beams.scores_BW, found_BC], axis=1), width)
    ended_BWN = _taken(jnp.concatenate([beams.ended_BWN, tokens_BCN], axis=1), best_BW)

    exact = config.early_stopping == "never" and config.length_penalty > 0
    best_B = sums_BW[:, 0] / (_length(new_tokens, config) if exact else length)
    worst_B = scores_BW[:, -1]  # -inf while there are fewer than W
    open_B = beams.open_B & (best_B > worst_B)
    if config.early_stopping is True:
        open_B &= jnp.isneginf(worst_B)
    going = _taken(tokens_BCN, going_BW), jnp.take_along_axis(parents_BC, going_BW, axis=1), sums_BW
    return Beams(*going, ended_BWN, scores_BW, open_B)


def _length(tokens: jax.Array | int, config: BeamConfig) -> jax.Array:
    """Divisor of the sum of the log-probabilities of a hypothesis, from its number of tokens."""
    offset = config.length_offset
    return (jnp.asarray(offset + tokens, jnp.float32) / (offset + 1)) ** config.length_penalty


def _taken(x_BWN: jax.Array, places_BC: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BWN, places_BC[..., None], axis=1)


class BeamSearch:
    """Finds likely continuations of prompts with a decoder, or likely targets of sources with an encoder-decoder.
    Compiled functions are cached between calls.

    Arguments and errors are those of `Generator`, but for `config`.
    """

    def __init__(
        self,
        model: Model,
        config: BeamConfig,
        eos_id: int | None,
        pad_id: int,
        vocab_size: int | None = None,
        start: Sequence[int] = (),
    ):
        self._decoder, self._config = CachedDecoder(model, eos_id, pad_id, vocab_size, start), config
        self._begin = jax.jit(self._first_step, static_argnums=(2,))
        self._continue = jax.jit(self._next_step, donate_argnums=(1,))

    def search(self, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[Hypothesis]]:
        """The `n_best` hypotheses of every prompt, best first, of at most `new_tokens` tokens.

        Raises:
          ValueError: as `Generator.stream`.
        """
        *_, last = self.steps(params, prompts, new_tokens)
        # Groups of one prompt compete for its n best.
        flat = lambda x_GBW: np.moveaxis(np.asarray(x_GBW), 0, 1).reshape(len(prompts), self._config.beams, -1)  # noqa: E731
        rows = zip(flat(last.ended_BWN).tolist(), flat(last.scores_BW)[..., 0].tolist(), strict=True)
        return [self._best(zip(*row, strict=True)) for row in rows]

    def steps(self, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Iterator[Beams]:
        """The state after each step, with a first axis of groups, until every search has ended."""
        inputs = self._decoder.inputs(prompts, new_tokens)
        params = self._decoder.prepared(params)
        cache, beams, positions_R = self._begin(params, inputs, new_tokens)
        for index in range(1, new_tokens):
            # Dispatched before it is known whether this step is needed, so that the device does not wait.
            cache, following = self._continue(params, cache, beams, positions_R, index)
            yield beams
            if not np.asarray(beams.open_B).any():
                return
            beams = following
        yield beams

    def _best(self, found: Any) -> list[Hypothesis]:
        end = self._decoder.eos_id
        real = sorted((one for one in found if one[1] > -np.inf), key=lambda one: -one[1])[: self._config.n_best]
        return [Hypothesis(row[: row.index(end)] if end in row else row, score) for row, score in real]

    def _first_step(self, params, inputs: Inputs, new_tokens) -> tuple[Cache, Beams, jax.Array]:
        cache, logits_BV, positions_B = self._decoder.prefill(params, inputs, new_tokens)
        shape = self._shape(len(positions_B))
        rows_R = jnp.broadcast_to(jnp.arange(shape[1])[:, None], shape).reshape(-1)
        beams = self._advance(Beams.empty(shape, new_tokens, self._decoder.pad_id), logits_BV[rows_R], 0)
        return cache.sequences(rows_R), beams, positions_B[rows_R]

    def _next_step(self, params, cache: Cache, beams: Beams, positions_R, index) -> tuple[Cache, Beams]:
        groups, batch, width = beams.parents_BW.shape
        first_GB1 = width * jnp.arange(groups * batch).reshape(groups, batch, 1)
        cache = cache.reordered((first_GB1 + beams.parents_BW).reshape(-1))
        tokens_R = beams.tokens_BWN[..., index - 1].reshape(-1)
        cache, logits_RV = self._decoder.step(params, cache, tokens_R, positions_R + index - 1)
        return cache, self._advance(beams, logits_RV, index)

    def _advance(self, beams: Beams, logits_RV: jax.Array, index: jax.Array | int) -> Beams:
        """`advanced`, one group after another: each knows what those before it have chosen."""
        config, vocab = self._config, logits_RV.shape[-1]
        log_p_GBWV = jax.nn.log_softmax(logits_RV.astype(jnp.float32)).reshape(*beams.sums_BW.shape, vocab)

        def group(chosen_BV: jax.Array, given: tuple[Beams, jax.Array]) -> tuple[jax.Array, Beams]:
            beams, log_p_BWV = given
            log_p_BWV -= config.diversity_penalty * chosen_BV[:, None]
            beams = advanced(beams, log_p_BWV, index, config, self._decoder.eos_id)
            real_BW1 = jnp.isfinite(beams.sums_BW)[..., None]
            return chosen_BV + (real_BW1 * jax.nn.one_hot(beams.tokens_BWN[..., index], vocab)).sum(axis=1), beams

        nothing_BV = jnp.zeros((beams.sums_BW.shape[1], vocab), jnp.float32)
        _, beams = jax.lax.scan(group, nothing_BV, (beams, log_p_GBWV))
        # Replicated, because every process reads them.
        return jax.tree.map(partition.constrain, beams)

    def _shape(self, batch: int) -> tuple[int, int, int]:
        return self._config.groups, batch, self._config.beams // self._config.groups
