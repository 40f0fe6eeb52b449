"""All ways to dispatch give what all experts for all tokens give, where none drops a token.

Legend: B batch, T length, E experts, K choices of a token.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.dispatch.seats import ByProducts
from llm_jax.layers.ffn.grouped import BLOCKS
from tests.helpers.dispatching import (
    WIDTH,
    both,
    choice,
    choices,
    everyone,
    loads,
    picks,
    serve,
    tokens,
    weights,
)

B, T, E = 2, 24, 4
AMPLE = {
    "dropless": Dropless(),
    "capacity": Capacity(float(E)),
    "capacity by score, in groups": Capacity(float(E), "score", group=10),
    "capacity by products": Capacity(float(E), moves=ByProducts()),
}
X_BTD = tokens(B, T)
REAL_BT = jnp.asarray(np.random.default_rng(1).random((B, T)) > 0.2)


def _same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def _fitting(*routes):
    """Every dispatch with those of the routes that it serves."""
    dispatches = (Dense(), *AMPLE.values())
    pairs = [(dispatch, one) for dispatch in dispatches for one in routes if type(one) in dispatch.serves]
    return pytest.mark.parametrize(("dispatch", "routes"), pairs, ids=lambda part: type(part).__name__)


@_fitting(choices(B, T, E, 2), picks(B, 2, T // 2, E, 5))
def test_values_and_gradients_are_those_of_the_dense_dispatch(dispatch, routes):
    arguments = weights(E), X_BTD, routes, REAL_BT
    _same(both(dispatch, *arguments), both(Dense(), *arguments))


def test_gradients_of_many_rows_are_those_of_the_dense_dispatch():
    """Of experts that get more than two of the blocks in which products are computed, less than one, or nothing. As
    sums of 600 numbers round, differences are relative to the largest number of each array."""
    batch, length, experts = 2, 300, 5
    generator = np.random.default_rng(6)
    first_BT = np.where(generator.random((batch, length)) < 0.95, 0, 4)
    experts_BTK = np.stack([first_BT, generator.choice([2, 3], p=[0.9, 0.1], size=(batch, length))], axis=-1)
    sizes = np.bincount(experts_BTK.ravel(), minlength=experts)
    assert sizes[0] > 2 * max(BLOCKS) < sizes[2] and sizes[1] == 0 < sizes[4] < min(BLOCKS)
    routes = choice(experts_BTK, generator.uniform(0.1, 1, experts_BTK.shape))
    x_BTD = tokens(batch, length)
    found, expected = (both(way, weights(experts), x_BTD, routes, everyone(x_BTD)) for way in (Dropless(), Dense()))

    def same(a, b):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()

    jax.tree.map(same, found, expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.sampled_from([(1, 1, 2, 2), (2, 5, 4, 1), (1, 7, 3, 3)]))
def test_any_load_will_do(data, shape):
    """Equal weights, experts that nobody chose, one that all chose, choices left out, rows that are padding."""
    batch, length, experts, _ = shape
    routes, real_BT = data.draw(loads(*shape))
    arguments = weights(experts), tokens(batch, length), routes, real_BT
    served, (dweights, dx_BTD, droutes_BTK) = both(Dense(), *arguments)
    # A choice that is none teaches the router nothing.
    expected = served, (dweights, dx_BTD, jnp.where(routes.weights_BTK > 0, droutes_BTK, 0))
    for dispatch in AMPLE.values():
        _same(both(dispatch, *arguments), expected)


@pytest.mark.parametrize("dispatch", [Dense(), *AMPLE.values()], ids=["dense", *AMPLE])
@pytest.mark.parametrize("expert", [0, E - 1])
def test_one_expert_for_all_is_that_expert(dispatch, expert):
    routes = choice(np.full((B, T, 1), expert), np.ones((B, T, 1)))
    y_BTD, served_BT = serve(dispatch, weights(E), X_BTD, routes, everyone(X_BTD))
    own = jax.tree.map(lambda x: x[expert : expert + 1], weights(E))
    alone = choice(np.zeros((B, T, 1)), np.ones((B, T, 1)))
    _same(y_BTD, serve(Dense(), own, X_BTD, alone, everyone(X_BTD))[0])
    np.testing.assert_array_equal(served_BT, 1)


@_fitting(choices(B, T, E, 2), picks(B, 2, T // 2, E, 5))
def test_padding_gets_nothing_and_changes_nothing(dispatch, routes):
    (y_BTD, served_BT), (expected, *_) = both(dispatch, weights(E), X_BTD, routes, REAL_BT)
    np.testing.assert_array_equal(np.asarray(y_BTD)[~REAL_BT], 0)
    np.testing.assert_array_equal(np.asarray(served_BT)[~REAL_BT], 0)
    other_BTD = jnp.where(REAL_BT[..., None], X_BTD, 1e3)
    (other, _), (dweights, dx_BTD, _) = both(dispatch, weights(E), other_BTD, routes, REAL_BT)
    _same((other, dweights), (y_BTD, expected))
    np.testing.assert_array_equal(np.asarray(dx_BTD)[~REAL_BT], 0)


@pytest.mark.parametrize("dispatch", [AMPLE["dropless"], AMPLE["capacity"]], ids=["dropless", "capacity"])
def test_tokens_in_another_order_give_results_in_that_order(dispatch):
    routes, order = choices(B, T, E, 2), np.random.default_rng(2).permutation(T)
    y_BTD, served_BT = serve(dispatch, weights(E), X_BTD, routes, REAL_BT)
    moved = jax.tree.map(lambda x: x[:, order], (X_BTD, routes, REAL_BT))
    _same(serve(dispatch, weights(E), *moved), (y_BTD[:, order], served_BT[:, order]))


@pytest.mark.parametrize("dispatch", AMPLE.values(), ids=AMPLE)
def test_results_have_the_type_of_tokens(dispatch):
    kernels = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights(E))
    arguments = choices(B, T, E, 2), REAL_BT
    y_BTD, served_BT = serve(dispatch, kernels, X_BTD.astype(jnp.bfloat16), *arguments)
    assert y_BTD.dtype == jnp.bfloat16 and served_BT.dtype == jnp.float32
    expected_BTD = serve(Dense(), weights(E), X_BTD, *arguments)[0]
    np.testing.assert_allclose(np.asarray(y_BTD, np.float32), expected_BTD, atol=0.15)
    assert y_BTD.shape == (B, T, WIDTH)
