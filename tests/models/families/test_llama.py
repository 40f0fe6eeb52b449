"""LLaMA."""

import pytest

from llm_jax.models import count
from llm_jax.models.families import llama


def test_layers_may_see_windows_of_their_own():
    config = llama.llama(4, 2, 8, hidden=12, window=(3, None, 3, None))
    (segment,) = config.segments
    assert segment.repeats == 2 and [block.mixer.mask.window for block in segment.blocks] == [3, None]
    with pytest.raises(ValueError, match="window has 1 entries and there are 4 layers"):
        llama.llama(4, 2, 8, hidden=12, window=(3,))


def test_tying_saves_the_head():
    tied, own = llama.llama(1, 2, 8, hidden=12, tied=True), llama.llama(1, 2, 8, hidden=12)
    assert count.parameters(own) - count.parameters(tied) == 32000 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3, "width": 16}, "heads is 3 and width is 16: heads must divide width"),
        ({"heads": 4, "width": 16, "kv_heads": 3}, "kv_heads is 3 and heads is 4"),
        ({"heads": 16, "width": 16}, "head_dim is 1: it must be even"),
        ({"heads": 4, "width": 16, "kv_heads": 0}, "kv_heads is 0"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        llama.llama(layers=1, hidden=8, **arguments)
