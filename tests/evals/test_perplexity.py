"""Held-out loss and bits per byte are means over a whole set, by its tokens and its bytes."""

import math

import jax.numpy as jnp
import pytest

from llm_jax.core.metrics import Ratio
from llm_jax.evals import PerplexityConfig
from llm_jax.evals.perplexity import scores


def _metrics(batch: tuple[float, float]) -> dict[str, Ratio]:
    total, count = batch
    return {"loss": Ratio(jnp.float32(total), jnp.float32(count))}


def test_scores_are_over_the_whole_set():
    batches = [(6.0, 2.0), (2.0, 6.0)]
    values = scores(_metrics, batches, bytes_of_text=16)
    assert values == pytest.approx({"loss": 1.0, "targets": 8.0, "bits_per_byte": 8 / math.log(2) / 16})
    assert "bits_per_byte" not in scores(_metrics, batches, None)


def test_an_empty_set_is_an_error():
    with pytest.raises(ValueError, match="evaluation set has no batch"):
        scores(_metrics, [], None)


def test_compressors_need_the_test_part():
    assert PerplexityConfig(test=True, compressors=True).compressors
    with pytest.raises(ValueError, match="set test, which compressors requires"):
        PerplexityConfig(compressors=True)
