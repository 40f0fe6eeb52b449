"""Filling of masks by an encoder, in one forward pass.

Legend: B batch, T padded length, M masks of a text, D model width, V vocabulary, K tokens for a mask.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.checks import check, given
from llm_jax.inference.cached_decoder import in_compute_type
from llm_jax.inference.prompts import check_prompts, padded
from llm_jax.layers.roles import roles_of
from llm_jax.models.build import Model, applied, boxed_parameters
from llm_jax.models.generator_discriminator import GeneratorDiscriminator
from llm_jax.models.heads import HeadConfig, TiedHead
from llm_jax.models.inputs import Inputs
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import partition

_BUCKET = 8
"""The number of scored positions of a text is a multiple of this, so that texts share a compiled program."""


class Filling(NamedTuple):
    """The likeliest tokens of one mask."""

    position: int
    """Of the mask among the tokens of its text."""
    tokens: list[int]
    """The likeliest first."""
    probabilities: list[float]
    """Of these tokens, among all of the vocabulary."""


class MaskFiller:
    """Predicts the tokens of masks (Devlin et al. 2019, arXiv:1810.04805, 3.1, task 1), of each mask on its own,
    whatever is chosen for the others.

    Args:
      mask_id: the token at unknown positions.
      pad_id: the token of padding.
      vocab_size: number of the tokenizer's tokens, if the model's vocabulary is larger. Other tokens have no
        probability.
      top: number of tokens for each mask.

    Raises:
      ValueError: for a model that is not an encoder with scores of the vocabulary, or a token outside of it.
    """

    def __init__(self, model: Model, mask_id: int, pad_id: int, vocab_size: int | None = None, top: int = 5):
        check_can_fill(model)
        self._model, self._mask_id, self._pad_id, self._top = model, mask_id, pad_id, top
        self._scored = given(model.config.vocab_size, "the model has no vocabulary: masks require vocab_size")
        self._vocab_size = self._scored if vocab_size is None else vocab_size
        check(
            1 <= self._vocab_size <= self._scored,
            f"vocab_size is {vocab_size} and the model's is {self._scored}: it must not exceed the model's; use the "
            "tokenizer that the model was trained with",
        )
        for name, token in (("mask_id", mask_id), ("pad_id", pad_id)):
            check(
                0 <= token < self._scored,
                f"{name} is {token}: it must be a token of the model's vocabulary, from 0 to {self._scored - 1}",
            )
        check(
            1 <= top <= self._vocab_size,
            f"top is {top}: it must be from 1 to {self._vocab_size}, the number of tokens",
        )
        self._predict = jax.jit(self._likeliest)
        self._roles = roles_of(boxed_parameters(model))

    def fill(self, params: Any, texts: Sequence[Sequence[int]]) -> list[list[Filling]]:
        """The likeliest tokens of each mask of each text.

        Args:
          texts: token ids, with all special tokens that the model was trained with, such as BERT's [CLS] and [SEP].

        Raises:
          ValueError: for a text that is empty, without a mask, or longer than the model; for a token outside of the
            model's vocabulary.
        """
        check_prompts(texts, self._scored)
        limit, longest = self._model.config.max_length, max(map(len, texts))
        check(
            longest <= limit,
            f"the longest text has {longest} tokens and the model's max_length is {limit}: shorten it",
        )
        found = [np.flatnonzero(np.asarray(text) == self._mask_id) for text in texts]
        for number, masks in enumerate(found):
            check(len(masks) > 0, f"text {number} has no mask token {self._mask_id}: put one where a token is unknown")
        masks_BM = np.zeros((len(texts), -(-max(map(len, found)) // _BUCKET) * _BUCKET), np.int32)
        for row, masks in enumerate(found):
            masks_BM[row, : len(masks)] = masks
        params = in_compute_type(params, self._roles, self._model.precision.dtype)
        tokens_BMK, p_BMK = map(np.asarray, self._predict(params, padded(texts, self._pad_id, limit), masks_BM))
        return [
            [
                Filling(int(position), tokens_BMK[row, index].tolist(), p_BMK[row, index].tolist())
                for index, position in enumerate(masks)
            ]
            for row, masks in enumerate(found)
        ]

    def _likeliest(self, params: Any, inputs: Inputs, masks_BM: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden_BTD = applied(self._model, params, inputs, method="hidden").hidden_BTD
        # Scores of a large vocabulary are computed for masks alone.
        hidden_BMD = jnp.take_along_axis(hidden_BTD, masks_BM[..., None], axis=1)
        logits_BMV = applied(self._model, params, hidden_BMD, method="unembed")[..., : self._vocab_size]
        p_BMK, tokens_BMK = jax.lax.top_k(jax.nn.softmax(logits_BMV), self._top)
        # Replicated, because every process reads them.
        return partition.constrain(tokens_BMK), partition.constrain(p_BMK)


def check_can_fill(model: Model) -> None:
    """
    Raises:
      ValueError: if the model cannot fill masks.
    """
    check(
        isinstance(model, Transformer) and not model.config.causal and not model.config.permuted,
        f"the model is {_described(model)}: masks are filled by an encoder, whose tokens read later ones too; generate "
        "a continuation or a target instead",
    )
    head = model.config.stacks[-1].head
    check(
        isinstance(head, HeadConfig | TiedHead),
        f"the model's head is {type(head).__name__}: filling masks requires scores of the vocabulary, HeadConfig or "
        "TiedHead",
    )


def _described(model: Model) -> str:
    if isinstance(model, GeneratorDiscriminator):
        return "a generator and a discriminator"
    if not isinstance(model, Transformer):
        return "an encoder-decoder"
    return "causal" if model.config.causal else "trained on permutations"
