"""From ids to vectors, and back by the same table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.embed import Embed, EmbedConfig
from llm_jax.layers.linear import FanIn, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig

GENERATOR = np.random.default_rng(0)
TABLE = GENERATOR.normal(size=(7, 4)).astype(np.float32)
POSITIONS = GENERATOR.normal(size=(5, 4)).astype(np.float32)
TOKENS = np.array([[0, 6, 3], [3, 3, 1]])
PLACES = np.array([[0, 1, 2], [4, 0, 1]])


def test_embedding_is_a_row_of_the_table():
    layer = Embed(EmbedConfig(), 7, 5, 4, Precision())
    np.testing.assert_array_equal(layer.apply({"params": {"table": TABLE}}, TOKENS, PLACES), TABLE[TOKENS])


def test_positions_are_added():
    layer = Embed(EmbedConfig(position=LearnedPositionsConfig()), 7, 5, 4, Precision())
    params = {"table": TABLE, "positions": {"table": POSITIONS}}
    np.testing.assert_allclose(layer.apply({"params": params}, TOKENS, PLACES), TABLE[TOKENS] + POSITIONS[PLACES])


def test_vectors_are_scaled_before_positions_are_added_and_normed_after():
    config = EmbedConfig(position=LearnedPositionsConfig(), scale=3.0, norm=LayerNormConfig())
    scale, bias = GENERATOR.normal(size=(2, 4)).astype(np.float32)
    params = {"table": TABLE, "positions": {"table": POSITIONS}, "norm": {"scale": scale, "bias": bias}}
    x = 3 * TABLE[TOKENS] + POSITIONS[PLACES]
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    actual = Embed(config, 7, 5, 4, Precision()).apply({"params": params}, TOKENS, PLACES)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_attend_scores_every_token_against_the_table():
    hidden = GENERATOR.normal(size=(2, 3, 4)).astype(np.float32)
    layer = Embed(EmbedConfig(), 7, 5, 4, Precision())
    scores = layer.apply({"params": {"table": TABLE}}, hidden, method="attend")
    np.testing.assert_allclose(scores, hidden @ TABLE.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [None, LayerNormConfig()])
@pytest.mark.parametrize("position", [None, LearnedPositionsConfig(), LearnedPositionsConfig(offset=2)])
def test_parameters_are_counted(position, norm):
    config = EmbedConfig(position=position, norm=norm)
    shapes = jax.eval_shape(Embed(config, 7, 5, 4, Precision()).init, jax.random.key(0), TOKENS, PLACES)
    assert trees.count(shapes) == config.parameters(7, 5, 4)


@pytest.mark.parametrize(("init", "expected"), [(Normal(0.3), 0.3), (FanIn(), 1 / np.sqrt(50))])
def test_table_has_its_scale_and_axes(init, expected):
    made = Embed(EmbedConfig(init), 400, 5, 50, MIXED).init(jax.random.key(0), TOKENS, PLACES)["params"]["table"]
    assert made.names == ("vocab", "embed") and made.value.dtype == jnp.float32
    np.testing.assert_allclose(np.std(made.value), expected, rtol=0.03)


def test_dropout_acts_only_where_a_key_is_given():
    layer = Embed(EmbedConfig(dropout=0.5), 7, 5, 4, Precision())
    params = {"params": {"table": TABLE}}
    np.testing.assert_array_equal(layer.apply(params, TOKENS, PLACES), TABLE[TOKENS])
    dropped = np.asarray(layer.apply(params, TOKENS, PLACES, rngs={"dropout": jax.random.key(0)}))
    kept = dropped != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(dropped[kept], 2 * TABLE[TOKENS][kept])


def test_dropout_is_a_fraction():
    with pytest.raises(ValueError, match="dropout is 1.5"):
        EmbedConfig(dropout=1.5)
