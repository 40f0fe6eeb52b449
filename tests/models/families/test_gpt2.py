"""GPT-2 as published."""

import pytest

from llm_jax.models import count
from llm_jax.models.families import gpt2


@pytest.mark.parametrize(
    ("name", "millions"), [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6)]
)
def test_published_sizes(name, millions):
    assert count.parameters(gpt2.SIZES[name]()) == pytest.approx(millions * 1e6, rel=0.005)


def test_there_is_no_other_size():
    assert len(gpt2.SIZES) == 4


def test_output_weights_start_smaller_with_depth():
    block = gpt2.gpt2(8, 2, 8).segments[0].blocks[0]
    assert block.mixer.out_init.stddev == block.ffn.out_init.stddev == pytest.approx(0.02 / 4)
    assert block.mixer.init.stddev == block.ffn.init.stddev == 0.02


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads is 5 and width is 768: heads must divide width; set heads to one of"):
        gpt2.gpt2(12, 5, 768)
