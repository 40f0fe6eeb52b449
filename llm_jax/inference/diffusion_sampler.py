"""Sampling from a masked diffusion model: masks are filled over several steps, some of them in each.

Legend: B batch, T length, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core import rng
from llm_jax.core.checks import check, check_positive, check_seed
from llm_jax.core.configclass import configclass
from llm_jax.inference.next_token import sample
from llm_jax.inference.prompts import check_prompts, padded
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.build import Model, applied
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer


@configclass
class Remasking(abc.ABC):
    """Which of the tokens that a step draws are masked again. Derive a configclass from it to use your own rule."""

    @abc.abstractmethod
    def priority(self, log_p_BT: jax.Array, key: jax.Array) -> jax.Array:
        """float32 [B, T]: of a sequence's new tokens those with the highest priority stay.

        Args:
          log_p_BT: float32, the logarithm of the model's probability of each drawn token.
        """


@configclass
class LowConfidence(Remasking):
    """The tokens that the model finds least likely are masked again (Nie et al. 2025, arXiv:2502.09992, 2.4)."""

    def priority(self, log_p_BT: jax.Array, key: jax.Array) -> jax.Array:
        return log_p_BT


@configclass
class AtRandom(Remasking):
    """Random tokens are masked again, which is the reverse process of the diffusion (Nie et al. 2025, arXiv:2502.09992,
    2.4; Sahoo et al. 2024, arXiv:2406.07524, 3.1). With a step for each token it samples exactly from the model's mean
    over all orders."""

    def priority(self, log_p_BT: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, log_p_BT.shape)


@configclass
class DiffusionSamplingConfig:
    """How the masks of a sequence are filled."""

    steps: int = 64
    """Forward passes, of which each fills as many masks as the others or one more; with more steps than masks some
    fill none."""
    remasking: Remasking = LowConfidence()
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    """How a token is drawn for each mask, without a repetition penalty."""

    def __post_init__(self):
        check_positive(steps=self.steps)
        check(
            self.sampling.repetition_penalty == 1,
            f"sampling.repetition_penalty is {self.sampling.repetition_penalty}: masks are filled together, so that "
            "none comes after another; set it to 1",
        )


class DiffusionSampler:
    """Fills masks with a bidirectional model. Compiled functions are cached between calls.

    Args:
      mask_id: the mask token (`special_tokens.mask_id`). It is never drawn.
      vocab_size: number of the tokenizer's tokens, if the model's vocabulary is larger. Other tokens are never drawn.

    Raises:
      ValueError: for a causal model, one without scores of tokens, or ids outside of its vocabulary.
    """

    def __init__(self, model: Model, config: DiffusionSamplingConfig, mask_id: int, vocab_size: int | None = None):
        if not isinstance(model, Transformer) or model.config.causal or model.config.has_cross_attention:
            raise ValueError(
                "the model is causal or requires the output of an encoder: masks are filled from both sides; use a "
                "model that MaskedDiffusionConfig can train"
            )
        check(
            isinstance(model.config.head, HeadConfig | TiedHead),
            f"the model's head is {type(model.config.head).__name__}: DiffusionSampler requires HeadConfig or TiedHead",
        )
        scored = model.config.vocab_size or 0
        size = scored if vocab_size is None else vocab_size
        check(1 <= size <= scored, f"vocab_size is {vocab_size} and the model's is {scored}: it must not exceed that")
        check(
            0 <= mask_id < scored,
            f"mask_id is {mask_id}: it must be a token of the model's vocabulary, from 0 to {scored - 1}",
        )
        self._model, self._config, self._mask_id = model, config, mask_id
        self._drawn = (np.arange(scored) < size) & (np.arange(scored) != mask_id)
        self._filled = jax.jit(self._fill)

    def fill(self, params: Any, sequences: Sequence[Sequence[int]], seed: int = 0) -> list[list[int]]:
        """The sequences with a token instead of each mask, at any position.

        Raises:
          ValueError: for an empty sequence, one longer than the model's maximum length, tokens outside of the model's
            vocabulary, or an invalid seed.
        """
        check_seed(seed=seed)
        check_prompts(sequences, self._model.config.vocab_size or 0)
        longest, room = max(map(len, sequences)), self._model.config.max_length
        check(
            longest <= room,
            f"the longest sequence has {longest} tokens with its masks and the model's max_length is {room}: shorten "
            "the prompt, or reduce new_tokens",
        )
        rows = np.asarray(self._filled(params, padded(sequences, 0, room), seed)).tolist()
        return [row[: len(sequence)] for row, sequence in zip(rows, sequences, strict=True)]

    def generate(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        eos_id: int | None = None,
        seed: int = 0,
    ) -> list[list[int]]:
        """`new_tokens` tokens after each prompt, up to but without the first `eos_id`, if one is given.

        Raises:
          ValueError: as `fill`; if `new_tokens` is not positive.
        """
        check_positive(new_tokens=new_tokens)
        found = self.fill(params, [[*prompt, *[self._mask_id] * new_tokens] for prompt in prompts], seed)
        rows = [row[len(row) - new_tokens :] for row in found]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]

    def _fill(self, params: Any, inputs: Inputs, seed: int) -> jax.Array:
        # Padding is not filled, even if its id is that of the mask.
        real_BT, steps = inputs.located().real_BT, self._config.steps
        masks_B1 = jnp.sum(real_BT & (inputs.ids_BT == self._mask_id), axis=1, keepdims=True)

        def step(tokens_BT: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
            draw_key, order_key = jax.random.split(rng.key(seed, "masked diffusion", index))
            drawn_BT, log_p_BT = self._draw(params, dataclasses.replace(inputs, tokens_BT=tokens_BT), draw_key)
            masked_BT = real_BT & (tokens_BT == self._mask_id)
            priority_BT = jnp.where(masked_BT, self._config.remasking.priority(log_p_BT, order_key), -jnp.inf)
            # The place of each token by priority, from 0. Of equal ones the first has the higher priority.
            ranks_BT = jnp.argsort(jnp.argsort(priority_BT, axis=1, descending=True), axis=1)
            # After step i, (i + 1) / steps of the masks are filled.
            count_B1 = masks_B1 * (index + 1) // steps - masks_B1 * index // steps
            return jnp.where(masked_BT & (ranks_BT < count_B1), drawn_BT, tokens_BT), None

        return jax.lax.scan(step, inputs.ids_BT, jnp.arange(steps))[0]

    def _draw(self, params: Any, inputs: Inputs, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A token for every place, and the logarithm of its probability, [B, T] each."""
        logits_BTV = applied(self._model, params, inputs).logits_BTV
        logits_BTV = jnp.where(self._drawn, logits_BTV, -jnp.inf)
        drawn_BT = sample(logits_BTV.reshape(-1, logits_BTV.shape[-1]), key, self._config.sampling)
        drawn_BT = drawn_BT.reshape(inputs.shape)
        log_p_BTV = jax.nn.log_softmax(logits_BTV)
        return drawn_BT, jnp.take_along_axis(log_p_BTV, drawn_BT[..., None], axis=-1)[..., 0]
