"""GPT-2 and GPT-3."""

import pytest

from llm_jax.models.families import gpt2


def test_output_weights_start_smaller_with_depth():
    block = gpt2.gpt2(8, 2, 8).segments[0].blocks[0]
    assert block.mixer.out_init.stddev == block.ffn.out_init.stddev == pytest.approx(0.02 / 4)
    assert block.mixer.init.stddev == block.ffn.init.stddev == 0.02


def test_gpt3_alternates_dense_and_banded_layers():
    (segment,) = gpt2.SIZES["gpt3-small"]().segments
    assert segment.repeats == 6 and [block.mixer.mask.window for block in segment.blocks] == [None, 256]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads is 5 and width is 768: heads must divide width; set heads to one of"):
        gpt2.gpt2(12, 5, 768)
