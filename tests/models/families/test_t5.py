"""T5's weights before training."""

import flax.linen as nn
import jax
import numpy as np

from llm_jax.models.build import build, initial_parameters
from llm_jax.models.families.t5 import t5, t5_1_1


def test_weights_start_at_the_scales_of_mesh_tensorflow():
    """Its attention (Shazeer et al. 2018, arXiv:1811.02084) scales no scores: queries start smaller."""
    width, heads, head_dim, hidden = 64, 8, 16, 96
    model = build(t5(1, heads, width, hidden, head_dim, vocab_size=512))
    params = nn.unbox(jax.jit(lambda: initial_parameters(model, jax.random.key(0)))())
    block = params["decoder"]["stack"]["segment_0"]["block_0"]
    for branch in ("mixer", "cross"):
        for name, scale in (
            ("query", (width * head_dim) ** -0.5),
            ("key", width**-0.5),
            ("value", width**-0.5),
            ("out", (heads * head_dim) ** -0.5),
        ):
            np.testing.assert_allclose(np.std(block[branch][name]["kernel"]), scale, rtol=0.05, err_msg=name)
    np.testing.assert_allclose(np.std(block["ffn"]["up"]["kernel"]), width**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(block["ffn"]["down"]["kernel"]), hidden**-0.5, rtol=0.05)
    np.testing.assert_allclose(np.std(params["decoder"]["embed"]["table"]), 1, rtol=0.05)


def test_1_1_is_gated_and_has_a_head_of_its_own():
    old, new = t5(1, 2, 8, 16), t5_1_1(1, 2, 8, 16)
    assert set(_names(new)) - set(_names(old)) == {"gate", "head"}


def _names(config) -> list[str]:
    shapes = jax.eval_shape(lambda: initial_parameters(build(config), jax.random.key(0)))
    return [*shapes["decoder"], *shapes["decoder"]["stack"]["segment_0"]["block_0"]["ffn"]]
