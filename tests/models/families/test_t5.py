"""The kinds of T5."""

import jax

from llm_jax.models.build import build, initial_parameters
from llm_jax.models.families.t5 import t5, t5_1_1


def test_1_1_is_gated_and_has_a_head_of_its_own():
    old, new = t5(1, 2, 8, hidden=16), t5_1_1(1, 2, 8, hidden=16)
    assert set(_names(new)) - set(_names(old)) == {"gate", "head"}


def _names(config) -> list[str]:
    shapes = jax.eval_shape(lambda: initial_parameters(build(config), jax.random.key(0)))
    return [*shapes["decoder"], *shapes["decoder"]["stack"]["segment_0"]["block_0"]["ffn"]]
