"""Masked diffusion language modelling: an encoder that is trained at every rate of masking is a generative model."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.core.configclass import configclass
from llm_jax.data.examples import Examples, Row
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.config import ModelConfig
from llm_jax.models.inputs import Inputs
from llm_jax.objectives import special_tokens
from llm_jax.objectives.batch import Batch
from llm_jax.objectives.objective import Needs
from llm_jax.objectives.token_objective import TokenObjective
from llm_jax.tokenizers.tokenizer import Tokenizer


@configclass
class MaskedDiffusionConfig(TokenObjective):
    """Absorbing-state diffusion with the log-linear schedule (MDLM: Sahoo et al. 2024, arXiv:2406.07524, section 3;
    LLaDA: Nie et al. 2025, arXiv:2502.09992, 2.1 and 2.2). `inference/diffusion_sampler.py` samples from such a model.

    At time t a token of a document is masked with probability t, and the loss of a masked token has the weight 1 / t.
    Here t is k / n with k uniform from 1 to n, the number of tokens of the document in the row, and exactly k of them
    are masked (LLaDA, 2.4, equation 6). The expected loss is the same as for t uniform in (0, 1] and independent masks.
    The variance is lower, and the weights of a document add up to n, so that the loss is in nats per token.

    The expected loss is an upper bound of the negative log-likelihood of the text, its boundary tokens included. No
    bits per byte are stated: a bound beside the likelihoods of other models would mislead, and an evaluation draws only
    one t for each document.
    """

    needs = Needs("bidirectional")
    predicts_text = False

    def special_tokens(self, sequence_length: int) -> tuple[str, ...]:
        return (special_tokens.MASK,)

    def examples(self, model: ModelConfig, tokenizer: Tokenizer | None, sequence_length: int) -> "DiffusionExamples":
        return DiffusionExamples(special_tokens.mask_id(tokenizer, model.vocab_size or 0))

    def batch(self, rows: Mapping[str, Any]) -> Batch:
        inputs = Inputs(rows["inputs"], SequenceInfo(rows["positions"], rows["segment_ids"]))
        return Batch(inputs, rows["tokens"], rows["loss_weights"])


class DiffusionExamples(Examples):
    """Adds `inputs` and `loss_weights` to packed rows, and drops the last token, which only next-token prediction
    needs."""

    def __init__(self, mask_id: int):
        self._mask_id = mask_id

    def row(self, row: Row, generator: np.random.Generator) -> Row:
        row = {name: array[:-1] for name, array in row.items()}
        segments = row["segment_ids"]
        # By segment id, of which 0 is padding and an id that no token has is a document of 0 tokens.
        lengths = np.bincount(segments)
        counts = generator.integers(1, np.maximum(lengths, 1), endpoint=True)
        # The masked tokens of a document are the first in a random order of its tokens.
        order = np.lexsort((generator.random(len(segments)), segments))
        ranks = np.empty(len(segments), int)
        ranks[order] = np.arange(len(segments)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        masked = (ranks < counts[segments]) & (segments != 0)
        inputs = np.where(masked, self._mask_id, row["tokens"]).astype(np.int32)
        weights = np.where(masked, (lengths / counts)[segments], 0).astype(np.float32)
        return row | {"inputs": inputs, "loss_weights": weights}
