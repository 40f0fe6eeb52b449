"""From ids to vectors, and back by the same table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.embed import Embed, EmbedConfig, FactorizedConfig
from llm_jax.layers.initialisers import FanIn, Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.learned import LearnedPositionsConfig
from llm_jax.layers.positions.sinusoidal import SinusoidalConfig
from llm_jax.layers.sequence import SequenceInfo

GENERATOR = np.random.default_rng(0)
TABLE = GENERATOR.normal(size=(7, 4)).astype(np.float32)
POSITIONS = GENERATOR.normal(size=(5, 4)).astype(np.float32)
TOKENS = np.array([[0, 6, 3], [3, 3, 1]])
PLACES = SequenceInfo(jnp.array([[0, 1, 2], [4, 0, 1]]))


def embedded(layer: Embed, tokens: jax.Array, placement: SequenceInfo) -> jax.Array:
    """The stream's first state."""
    return layer(layer.tokens(tokens), placement)


def test_embedding_is_a_row_of_the_table():
    layer = Embed(EmbedConfig(), 7, 5, 4, Precision())
    np.testing.assert_array_equal(
        layer.apply({"params": {"table": TABLE}}, TOKENS, PLACES, method=embedded), TABLE[TOKENS]
    )


def test_positions_are_added():
    layer = Embed(EmbedConfig(position=LearnedPositionsConfig()), 7, 5, 4, Precision())
    params = {"table": TABLE, "positions": {"table": POSITIONS}}
    x_BTD = layer.apply({"params": params}, TOKENS, PLACES, method=embedded)
    np.testing.assert_allclose(x_BTD, TABLE[TOKENS] + POSITIONS[PLACES.positions_BT])


def test_vectors_are_scaled_before_positions_are_added_and_normed_after():
    config = EmbedConfig(position=LearnedPositionsConfig(), scale=3.0, norm=LayerNormConfig())
    scale, bias = GENERATOR.normal(size=(2, 4)).astype(np.float32)
    params = {"table": TABLE, "positions": {"table": POSITIONS}, "norm": {"scale": scale, "bias": bias}}
    x = 3 * TABLE[TOKENS] + POSITIONS[PLACES.positions_BT]
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias
    actual = Embed(config, 7, 5, 4, Precision()).apply({"params": params}, TOKENS, PLACES, method=embedded)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_attend_scores_every_token_against_the_table():
    hidden = GENERATOR.normal(size=(2, 3, 4)).astype(np.float32)
    layer = Embed(EmbedConfig(), 7, 5, 4, Precision())
    scores = layer.apply({"params": {"table": TABLE}}, hidden, method="attend")
    np.testing.assert_allclose(scores, hidden @ TABLE.T, rtol=1e-5, atol=1e-6)


def test_types_are_added_and_all_tokens_are_of_the_first_unless_told():
    types = GENERATOR.normal(size=(2, 4)).astype(np.float32)
    layer, params = Embed(EmbedConfig(types=2), 7, 5, 4, Precision()), {"table": TABLE, "types": types}
    of = np.array([[0, 0, 1], [1, 0, 1]])
    actual = layer.apply({"params": params}, TOKENS, PLACES.replace(types_BT=of), method=embedded)
    np.testing.assert_allclose(actual, TABLE[TOKENS] + types[of], rtol=1e-6)
    actual = layer.apply({"params": params}, TOKENS, PLACES, method=embedded)
    np.testing.assert_allclose(actual, TABLE[TOKENS] + types[0], rtol=1e-6)


def test_tokens_that_ask_have_one_vector_whatever_their_id():
    config = EmbedConfig(position=LearnedPositionsConfig(), target=True)
    target = GENERATOR.normal(size=4).astype(np.float32)
    params = {"table": TABLE, "positions": {"table": POSITIONS}, "target": target}
    asks = np.array([[False, False, True], [True, False, False]])
    sequence = PLACES.replace(targets_BT=asks)
    actual = Embed(config, 7, 5, 4, Precision()).apply({"params": params}, TOKENS, sequence, method=embedded)
    expected = np.where(asks[..., None], target, TABLE[TOKENS]) + POSITIONS[PLACES.positions_BT]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="targets_BT and embed.target is False"):
        Embed(EmbedConfig(), 7, 5, 4, Precision()).apply({"params": params}, TOKENS, sequence, method=embedded)


@pytest.mark.parametrize("of", ["tokens", "sum"])
def test_a_narrow_table_is_widened_before_or_after_positions_are_added(of):
    config = EmbedConfig(position=LearnedPositionsConfig(), factorized=FactorizedConfig(4, of, bias=False))
    kernel = GENERATOR.normal(size=(4, 6)).astype(np.float32)
    positions = GENERATOR.normal(size=(5, 6 if of == "tokens" else 4)).astype(np.float32)
    params = {"table": TABLE, "positions": {"table": positions}, "widen": {"kernel": kernel}}
    at = positions[PLACES.positions_BT]
    expected = TABLE[TOKENS] @ kernel + at if of == "tokens" else (TABLE[TOKENS] + at) @ kernel
    actual = Embed(config, 7, 5, 6, Precision()).apply({"params": params}, TOKENS, PLACES, method=embedded)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factorized", [None, FactorizedConfig(2), FactorizedConfig(3, "tokens", bias=False)])
@pytest.mark.parametrize("norm", [None, LayerNormConfig()])
@pytest.mark.parametrize(
    "position", [None, LearnedPositionsConfig(), LearnedPositionsConfig(offset=2), SinusoidalConfig()]
)
def test_parameters_are_counted(position, norm, factorized):
    config = EmbedConfig(position=position, norm=norm, factorized=factorized, types=2, target=True)
    init = functools.partial(Embed(config, 7, 5, 4, Precision()).init, method=embedded)
    shapes = jax.eval_shape(init, jax.random.key(0), TOKENS, PLACES)
    assert trees.count(shapes) == config.parameters(7, 5, 4)


@pytest.mark.parametrize(("init", "expected"), [(Normal(0.3), 0.3), (FanIn(), 1 / np.sqrt(50))])
def test_table_has_its_scale_and_axes(init, expected):
    made = Embed(EmbedConfig(init), 400, 5, 50, MIXED).init(jax.random.key(0), TOKENS, PLACES, method=embedded)[
        "params"
    ]["table"]
    assert made.names == ("vocab", "embed") and made.value.dtype == jnp.float32
    np.testing.assert_allclose(np.std(made.value), expected, rtol=0.03)


def test_dropout_acts_only_where_a_key_is_given():
    layer = Embed(EmbedConfig(dropout=0.5), 7, 5, 4, Precision())
    params = {"params": {"table": TABLE}}
    np.testing.assert_array_equal(layer.apply(params, TOKENS, PLACES, method=embedded), TABLE[TOKENS])
    dropped = np.asarray(layer.apply(params, TOKENS, PLACES, method=embedded, rngs={"dropout": jax.random.key(0)}))
    kept = dropped != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(dropped[kept], 2 * TABLE[TOKENS][kept])


def test_dropout_is_a_fraction():
    with pytest.raises(ValueError, match="dropout is 1.5"):
        EmbedConfig(dropout=1.5)
