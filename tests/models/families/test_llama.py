"""LLaMA as published."""

import pytest

from llm_jax.models import count
from llm_jax.models.families import llama

BILLIONS = {
    "llama-7b": 6.7,
    "llama-13b": 13.0,
    "llama-33b": 32.5,
    "llama-65b": 65.2,
    "llama2-7b": 6.74,
    "llama2-13b": 13.02,
    "llama2-70b": 68.98,
}


@pytest.mark.parametrize("name", llama.SIZES)
def test_published_sizes(name):
    # 7B is given as 6.7: the count is 6.738.
    assert count.parameters(llama.SIZES[name]()) == pytest.approx(BILLIONS[name] * 1e9, rel=0.006)


def test_only_the_largest_llama2_groups_its_keys():
    mixers = {name: build().segments[0].blocks[0].mixer for name, build in llama.SIZES.items()}
    assert {name for name, mixer in mixers.items() if mixer.kv_heads != mixer.heads} == {"llama2-70b"}
    assert {mixer.head_dim for mixer in mixers.values()} == {128}


def test_tying_saves_the_head():
    tied, own = llama.llama(1, 2, 8, 12, tied=True), llama.llama(1, 2, 8, 12)
    assert count.parameters(own) - count.parameters(tied) == 32000 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3, "width": 16}, "heads is 3 and width is 16: heads must divide width"),
        ({"heads": 4, "width": 16, "kv_heads": 3}, "kv_heads is 3 and heads is 4"),
        ({"heads": 16, "width": 16}, "head_dim is 1: rotary positions turn pairs"),
        ({"heads": 4, "width": 16, "kv_heads": 0}, "kv_heads is 0"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        llama.llama(layers=1, hidden=8, **arguments)
