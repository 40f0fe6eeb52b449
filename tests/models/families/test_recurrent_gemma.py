"""What RecurrentGemma's config says of its layers."""

import pytest

from llm_jax.core.dtypes import MIXED
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.recurrent.rg_lru import RGLRUConfig
from llm_jax.models import count
from llm_jax.models.families.recurrent_gemma import SIZES, recurrent_gemma


def test_every_third_layer_attends():
    config = SIZES["recurrentgemma-2b"]()
    assert [segment.repeats for segment in config.segments] == [8, 1] and config.depth == 26
    blocks = [block for segment in config.segments for _ in range(segment.repeats) for block in segment.blocks]
    kinds = [type(block.mixer) for block in blocks]
    assert kinds[:3] == [RGLRUConfig, RGLRUConfig, AttentionConfig] and kinds.count(AttentionConfig) == 8


def test_the_scale_of_token_vectors_is_a_bfloat16():
    assert SIZES["recurrentgemma-2b"]().embed.scale == 50.5  # the square root of 2560 is 50.596
    assert SIZES["recurrentgemma-9b"]().embed.scale == 64


def test_without_attention_a_cache_does_not_grow():
    config = recurrent_gemma(2, 2, 8, hidden=8, pattern=("recurrent",))
    assert count.cache_bytes(config, 8, MIXED) == count.cache_bytes(config, 8000, MIXED)


def test_kinds_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="did you mean 'recurrent'"):
        recurrent_gemma(2, 2, 8, hidden=8, pattern=("recurent",))
    with pytest.raises(ValueError, match="pattern is empty"):
        recurrent_gemma(2, 2, 8, hidden=8, pattern=())
