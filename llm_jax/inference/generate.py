"""Generation with a KV cache: one prefill of the prompts, then one compiled step per token.

Legend: B batch of prompts, P padded prompt length, S cache positions, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check, check_seed, given
from llm_jax.inference.next_token import sample
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.layers.attention.kv_cache import Cache
from llm_jax.layers.roles import Role, roles_of
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import Model, applied, boxed_parameters
from llm_jax.models.config import MAKE_CAUSAL
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.stack import Execution, unstack, unstacked
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import partition

_BUCKET = 64
"""Prompts are padded to a multiple of this, so that prompts of similar lengths share a compiled prefill."""


@flax.struct.dataclass
class _Progress:
    """State between decode steps, besides the cache. `seen_BV` is None without a repetition penalty."""

    tokens_B: jax.Array
    positions_B: jax.Array
    finished_B: jax.Array
    seen_BV: jax.Array | None


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


class Generator:
    """Continues prompts with a model. Compiled functions are cached between calls.

    Args:
      eos_id: the token that ends a sequence; None: every sequence has the full length.
      pad_id: the token that a sequence yields after its end.
      vocab_size: number of the tokenizer's tokens, if the model's vocabulary is larger. Other tokens are never sampled.

    Raises:
      ValueError: for a model that cannot decode autoregressively, a vocabulary larger than the model's, or an end or
        padding token outside of it.
    """

    def __init__(
        self,
        model: Model,
        sampling: SamplingConfig,
        eos_id: int | None,
        pad_id: int,
        vocab_size: int | None = None,
    ):
        model = self._given = _writer(model)
        config = dataclasses.replace(model.config, segments=unstacked(model.config.segments), execution=Execution())
        self._model, self._sampling, self._eos_id, self._pad_id = model.clone(config=config), sampling, eos_id, pad_id
        self._scored = given(model.config.vocab_size, "the model has no vocabulary: generation requires vocab_size")
        self._vocab_size = self._scored if vocab_size is None else vocab_size
        check(
            1 <= self._vocab_size <= self._scored,
            f"vocab_size is {vocab_size} and the model's is {self._scored}: it must not exceed the model's; use the "
            "tokenizer that the model was trained with",
        )
        for name, token in (("eos_id", eos_id), ("pad_id", pad_id)):
            check(
                token is None or 0 <= token < self._vocab_size,
                f"{name} is {token}: it must be a token of the vocabulary, from 0 to {self._vocab_size - 1}",
            )
        # One array for each layer: from a stack every step would copy each layer's weights (experiments/LOG.md).
        self._unstack = jax.jit(lambda stack: unstack(stack, model.config.segments))
        self._prefill = jax.jit(self._prefill_step, static_argnums=(3,))
        # The cache is donated, so that a step writes into it in place.
        self._decode = jax.jit(self._decode_step, donate_argnums=(1,))

    def stream(
        self, params: Any, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int = 0
    ) -> Iterator[np.ndarray]:
        """Yields int32 [B], the next token of every sequence, until all have ended or have `new_tokens` new tokens.

        Raises:
          ValueError: at the call, for an empty prompt, a token outside of the model's vocabulary, prompts that with
            `new_tokens` exceed the model's maximum length, or an invalid seed.
        """
        check_seed(seed=seed)
        check(new_tokens >= 1, f"new_tokens is {new_tokens}: it must be at least 1")
        check(
            all(map(len, prompts)) and len(prompts) > 0,
            "a prompt is empty: at least one token is required, such as bos",
        )
        self._check_tokens(prompts)
        return self._stream(params, *self._pad(prompts, new_tokens), new_tokens, seed)

    @functools.cached_property
    def _roles(self) -> Any:
        return roles_of(boxed_parameters(self._given))

    def _stream(
        self, params: Any, tokens_BP: np.ndarray, segments_BP: np.ndarray, new_tokens: int, seed: int
    ) -> Iterator[np.ndarray]:
        params = in_compute_type(params, self._roles, self._model.precision.dtype)
        params = params | {"stack": self._unstack(params["stack"])}
        # One forward pass over the prompts fills the cache and gives the first token of each.
        cache, progress = self._prefill(params, tokens_BP, segments_BP, new_tokens, seed)
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
        columns = list(self.stream(params, prompts, new_tokens, seed))
        rows = np.stack(columns, axis=1).tolist()
        return [row[: row.index(self._eos_id)] if self._eos_id in row else row for row in rows]

    def _check_tokens(self, prompts: Sequence[Sequence[int]]) -> None:
        """Checks that every token is in the model's vocabulary. jax would silently clamp an index outside of it."""
        for number, prompt in enumerate(prompts):
            found = np.asarray(prompt)
            check(
                found.ndim == 1 and np.issubdtype(found.dtype, np.integer),
                f"prompt {number} has shape {found.shape} and type {found.dtype}: a list of token ids is required",
            )
            wrong = found[(found < 0) | (found >= self._scored)]
            check(
                not wrong.size,
                f"prompt {number} has token {wrong[:1].sum()}, and the model's tokens are 0 to {self._scored - 1}: "
                "use the tokenizer that the model was trained with",
            )

    def _pad(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        longest, room = max(map(len, prompts)), self._model.config.max_length - new_tokens
        if longest > room:
            raise ValueError(
                f"the longest prompt has {longest} tokens and new_tokens is {new_tokens}: the model's max_length is "
                f"{self._model.config.max_length}; shorten the prompt, or set new_tokens to at most "
                f"{max(0, self._model.config.max_length - longest)}"
            )
        length = min(-(-longest // _BUCKET) * _BUCKET, room)
        tokens_BP = np.full((len(prompts), length), self._pad_id, np.int32)
        segments_BP = np.zeros((len(prompts), length), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BP[row, : len(prompt)] = prompt
            segments_BP[row, : len(prompt)] = 1
        return tokens_BP, segments_BP

    def _prefill_step(self, params, tokens_BP, segments_BP, new_tokens, seed) -> tuple[Cache, _Progress]:
        batch, length = tokens_BP.shape
        positions_BP = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        cache = self._model.allocate(batch, length + new_tokens)
        # A model that was trained with prefixes reads its prompt as one.
        prefix_BP = segments_BP != 0 if self._model.config.prefixed else None
        sequence = SequenceInfo(positions_BP, segments_BP, prefix_BT=prefix_BP)
        output = self._apply(params, Inputs(tokens_BP, sequence), cache)
        # Prompts are padded on the right. The next token follows the last real one of each.
        lengths_B = segments_BP.sum(axis=1)
        last_B1D = jnp.take_along_axis(output.hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)
        seen_BV = None
        if self._sampling.repetition_penalty != 1.0:
            rows_B1 = jnp.arange(batch)[:, None]
            seen_BV = jnp.zeros((batch, self._vocab_size), bool)
            # A maximum, because a padding token may have the id of a token of the prompt.
            seen_BV = seen_BV.at[rows_B1, tokens_BP].max(segments_BP != 0)
        finished_B = jnp.zeros(batch, bool)
        key = rng.key(seed, "sample")
        return output.cache, self._advance(params, last_B1D, lengths_B, finished_B, seen_BV, key)

    def _decode_step(self, params, cache, progress: _Progress, seed, index) -> tuple[Cache, _Progress]:
        # Positions continue those of each prompt, while all sequences write the same cache position after the padding.
        tokens_B1, positions_B1 = progress.tokens_B[:, None], progress.positions_B[:, None]
        inputs = Inputs(tokens_B1, SequenceInfo(positions_B1, jnp.ones_like(positions_B1)))
        output = self._apply(params, inputs, cache)
        key = rng.key(seed, "sample", index)
        positions_B = progress.positions_B + 1
        return output.cache, self._advance(
            params, output.hidden_BTD, positions_B, progress.finished_B, progress.seen_BV, key
        )

    def _advance(self, params, hidden_B1D, positions_B, finished_B, seen_BV, key) -> _Progress:
        logits_BV = applied(self._model, params, hidden_B1D, method="unembed")[:, 0, : self._vocab_size]
        tokens_B = jnp.where(finished_B, self._pad_id, sample(logits_BV, key, self._sampling, seen_BV))
        if self._eos_id is not None:
            finished_B |= tokens_B == self._eos_id
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(len(tokens_B)), tokens_B].set(True)
        # Replicated, because every process reads them.
        return _Progress(partition.constrain(tokens_B), positions_B, partition.constrain(finished_B), seen_BV)

    def _apply(self, params, inputs, cache) -> Any:
        return applied(self._model, params, inputs, cache, method="hidden")


def _writer(model: Model) -> Transformer:
    if not isinstance(model, Transformer) or model.config.has_cross_attention:
        raise ValueError("the model requires the output of an encoder: Generator supports decoders only; use a decoder")
    check(
        model.config.causal,
        f"{' and '.join(model.config.non_causal)} of the model is not causal: generation token by token requires a "
        f"causal model; {MAKE_CAUSAL}",
    )
    check(
        isinstance(model.config.head, HeadConfig | TiedHead),
        f"the model's head is {type(model.config.head).__name__}: generation requires HeadConfig or TiedHead",
    )
    return model
