"""Linear biases: slopes of the paper, distances of the row."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers.positions.alibi import ALiBiConfig


def _published(heads: int) -> list[float]:
    """As the authors' code gives them, in the words of section 3 and of its footnote on other numbers of heads."""
    if np.log2(heads).is_integer():
        first = 2.0 ** (-8 / heads)
        return [first ** (i + 1) for i in range(heads)]
    below = 2 ** int(np.log2(heads))
    return _published(below) + _published(2 * below)[0::2][: heads - below]


@pytest.mark.parametrize("heads", [1, 2, 8, 16, 3, 12, 71, 112])
def test_slopes_are_the_published_ones(heads):
    np.testing.assert_allclose(ALiBiConfig().slopes(heads), _published(heads), rtol=1e-6)


def test_eight_heads_halve_each_time():
    np.testing.assert_allclose(ALiBiConfig().slopes(8), [1 / 2**i for i in range(1, 9)])


def test_bias_falls_with_distance():
    alibi, positions = ALiBiConfig(factor=0.5), jnp.arange(6)[None]
    across = alibi.across(4, positions[:, 2:5], positions)
    assert across.shape == (1, 4, 3, 6)
    np.testing.assert_allclose(across[0, 1, 2], 0.5 * -(2.0**-4) * np.array([4, 3, 2, 1, 0, 1]))


def test_a_factor_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="factor is 0"):
        ALiBiConfig(0)
