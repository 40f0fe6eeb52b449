"""LaMDA's sizes as its paper counts them: without the embedding."""

import pytest

from llm_jax.models import count
from llm_jax.models.families import lamda


@pytest.mark.parametrize(
    ("name", "billions", "tolerance"),
    # The paper rounds the two smaller ones to whole billions.
    [("lamda-2b", 2, 0.05), ("lamda-8b", 8, 0.08), ("lamda-137b", 137, 0.005)],
)
def test_parameters_without_the_embedding(name, billions, tolerance):
    config = lamda.SIZES[name]()
    found = count.parameters(config) - config.vocab_size * config.width
    assert found == pytest.approx(billions * 1e9, rel=tolerance)


def test_all_layers_share_one_table_of_biases():
    config = lamda.lamda(3, 4, 16, head_dim=4, vocab_size=11)
    assert config.relative_bias == (config.segments[0].blocks[0].mixer.scores.bias, 4)
    one_less = lamda.lamda(2, 4, 16, head_dim=4, vocab_size=11)
    per_layer = 4 * 16 * 16 + 3 * 16 * 128 + 2 * 16
    assert count.parameters(config) - count.parameters(one_less) == per_layer
    assert count.parameters(config) - 3 * per_layer == 11 * 16 + 16 + 32 * 4
