"""What a model config refuses."""

import dataclasses

import pytest

from llm_jax.models.block import BlockConfig
from tests.helpers import tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": ()}, "segments is empty: a model needs at least one segment"),
        ({"width": 0}, "width is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.tiny_llama(), **change)


def test_dropout_is_a_fraction():
    block = tiny.tiny_gpt2().segments[0].blocks[0]
    with pytest.raises(ValueError, match="dropout is -0.1"):
        BlockConfig(block.mixer, block.ffn, block.norm, dropout=-0.1)


def test_depth_counts_blocks():
    config = tiny.tiny_gpt2(layers=3)
    assert config.depth == 3
    assert dataclasses.replace(config, segments=config.segments * 2).depth == 6
