"""Dropout of each kind: in training the share that a rate says, in the mean the model without it, and never without a
key."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dtypes import Precision
from llm_jax.layers.attention.attention import AttentionConfig
from llm_jax.layers.attention.kernels import (
    BlockedKernel,
    ChunkedKernel,
    DotProductKernel,
    PlainKernel,
    SplashKernel,
    TokamaxKernel,
)
from llm_jax.layers.attention.latent import LatentAttentionConfig
from llm_jax.layers.attention.masks import Causal
from llm_jax.layers.attention.pairs import Drop, Pairs
from llm_jax.layers.attention.relative import RelativeAttentionConfig
from llm_jax.layers.attention.scores import ScoresConfig
from llm_jax.layers.attention.softmax import attend
from llm_jax.layers.context import Context
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.sequence import SequenceInfo
from llm_jax.models.build import build
from llm_jax.models.dropout import Rates, rates_of, with_dropout
from llm_jax.models.families import SIZES
from llm_jax.models.families.mamba2 import mamba2
from llm_jax.models.families.t5 import t5
from llm_jax.models.stack import Execution
from tests.helpers import tiny

B, T, D, KEYS = 2, 7, 8, 1500
PLACE = SequenceInfo(np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)))
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)

PARTS = {
    "attention": AttentionConfig(2, 4, 1, dropout=0.3),
    "attention, plain": AttentionConfig(2, 4, 2, kernel=PlainKernel(), dropout=0.3),
    "attention in blocks": AttentionConfig(2, 4, 1, kernel=BlockedKernel(3), dropout=0.3),
    "latent attention": LatentAttentionConfig(2, None, 6, 4, 2, 4, dropout=0.3),
    "relative attention": RelativeAttentionConfig(2, 4, Causal(), dropout=0.3),
    "mlp": MLPConfig(12, "relu", dropout=0.3),
    "glu": GLUConfig(12, dropout=0.3),
    "experts": MoEConfig(3, MLPConfig(12, "relu", dropout=0.3), SoftmaxConfig(2), Capacity(4.0)),
    "experts, sorted": MoEConfig(3, GLUConfig(12, dropout=0.3), SoftmaxConfig(2), Dropless()),
    "experts, dense": MoEConfig(3, GLUConfig(12, dropout=0.3), SoftmaxConfig(2), Dense()),
    "expert for all tokens": MoEConfig(3, MLPConfig(4), SoftmaxConfig(1), shared=GLUConfig(12, dropout=0.3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_mean_over_keys_is_the_part_without_dropout(name):
    """And a key changes the result: means of many draws, within 5 standard errors of each value."""
    layer, context = PARTS[name].build(D, Precision(), "part"), Context(PLACE)

    @jax.jit
    def run():
        params = jax.tree.map(lambda leaf: leaf * 20, nn.unbox(layer.init(jax.random.key(0), X, context)))
        draw = lambda key: layer.apply(params, X, context, rngs={"dropout": key})[0]  # noqa: E731
        drawn = jax.lax.map(draw, jax.random.split(jax.random.key(1), KEYS))
        return drawn, layer.apply(params, X, context)[0]

    drawn, plain = map(np.asarray, run())
    assert (drawn[0] != drawn[1]).any()
    error = drawn.std(0) / np.sqrt(KEYS)
    assert (np.abs(drawn.mean(0) - plain) < 5 * error + 1e-5 * np.abs(plain).max()).all()


def _dropped_reference(q, k, v, kept, rate):
    """Softmax over earlier tokens, weights dropped, in numpy: every step by itself."""
    scores = np.einsum("BNTH,BNSH->BNTS", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("BNTS,BNSH->BNTH", weights * kept / (1 - rate), v)


def test_weights_that_are_kept_are_scaled_and_gradients_are_theirs():
    """Against autodiff of the written-out formula, with two query heads to a key head."""
    generator, rate = np.random.default_rng(0), 0.4
    q, k, v = (generator.normal(size=(B, heads, T, 3)).astype(np.float32) for heads in (4, 2, 2))
    kept = generator.random((B, 4, T, T)) > rate
    allowed = np.tril(np.ones((1, T, T), bool))

    def ours(q, k, v):
        return attend(q, k, v, jnp.asarray(allowed), kept=jnp.asarray(kept), rate=rate)

    def formula(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=1) for x in (k, v))
        scores = jnp.where(allowed, jnp.einsum("BNTH,BNSH->BNTS", q, k) / np.sqrt(3), -1e30)
        return jnp.einsum("BNTS,BNSH->BNTH", jax.nn.softmax(scores) * kept / (1 - rate), v)

    weight = generator.normal(size=q.shape).astype(np.float32)

    @jax.jit
    def run(q, k, v):
        y, pull = jax.vjp(ours, q, k, v)
        return y, pull(weight), jax.vjp(formula, q, k, v)[1](weight)

    y, *gradients = run(q, k, v)
    repeated = [np.repeat(x, 2, axis=1) for x in (k, v)]
    np.testing.assert_allclose(y, _dropped_reference(q, *repeated, kept, rate), atol=1e-5)
    for mine, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, expected, atol=2e-5)


def test_the_rate_is_the_share_that_is_dropped_and_blocks_differ():
    drop = Drop(jax.random.key(0), 0.1)
    first, second = map(np.asarray, jax.jit(lambda: [drop.kept((4, 4, 50, 50), start) for start in (0, 50)])())
    assert 1 - first.mean() == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / first.size))
    assert (first != second).any()
    # Heads, rows and queries are drawn apart.
    assert (
        (first[0] != first[1]).any() and (first[:, 0] != first[:, 1]).any() and (first[:, :, 0] != first[:, :, 1]).any()
    )


@pytest.mark.parametrize("kernel", [ChunkedKernel(), DotProductKernel(), SplashKernel(), TokamaxKernel()])
def test_a_kernel_that_never_holds_the_weights_is_refused(kernel):
    with pytest.raises(ValueError, match=f"dropout is 0.1 and kernel {type(kernel).__name__}.*set kernel to Blocked"):
        AttentionConfig(2, 4, 2, kernel=kernel, dropout=0.1)
    with pytest.raises(ValueError, match="dropout is 0.1 and kernel"):
        with_dropout(tiny.tiny_gpt2(), Rates(attention=0.1)).with_kernel(kernel)


def test_all_of_the_weights_cannot_be_dropped():
    with pytest.raises(ValueError, match="dropout is 1"):
        AttentionConfig(2, 4, 2, dropout=1.0)
    with pytest.raises(ValueError, match=r"expert.dropout is 1"):
        MoEConfig(3, GLUConfig(12, dropout=1.0), SoftmaxConfig(2))
    with pytest.raises(ValueError, match="layer_drop is 1.5"):
        dataclasses.replace(tiny.tiny_gpt2().segments[0].blocks[0], layer_drop=1.5)


@pytest.mark.parametrize("unroll", [1, 3])
def test_layers_are_skipped_with_the_probability_of_layer_drop(unroll):
    """Three layers that each add one: what is left counts those that stayed."""
    config = dataclasses.replace(
        with_dropout(tiny.tiny_gpt2(3), Rates(layers=0.25)), execution=Execution(unroll=unroll)
    )
    model = build(config)
    params = jax.tree.map(np.zeros_like, tiny.parameters(model))
    params["stack"]["segment_0"]["block_0"]["ffn"]["down"]["bias"] += 1
    place = SequenceInfo(np.arange(2)[None])

    def layers(key):
        module = model.bind({"params": params}, rngs={"dropout": key})
        return module.stack(jnp.zeros((1, 2, model.config.width)), Context(place))[0][0, 0, 0]

    counted = np.asarray(jax.jit(lambda: jax.vmap(layers)(jax.random.split(jax.random.key(0), KEYS)))())
    shares = [(counted == number).mean() for number in range(4)]
    expected = [0.25**3, 3 * 0.75 * 0.25**2, 3 * 0.75**2 * 0.25, 0.75**3]
    np.testing.assert_allclose(shares, expected, atol=5 * 0.5 / np.sqrt(KEYS))


def test_what_the_final_norm_gives_is_dropped():
    model = build(dataclasses.replace(tiny.tiny_gpt2(), dropout=0.5))
    params, tokens = tiny.parameters(model), tiny.tokens(8, 16)
    keys = (None, {"dropout": jax.random.key(0)})
    run = jax.jit(lambda: [model.apply({"params": params}, tokens, rngs=rngs).hidden_BTD for rngs in keys])
    plain, hidden = map(np.asarray, run())
    assert (hidden == 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(hidden.size))
    np.testing.assert_allclose(hidden[hidden != 0], 2 * plain[hidden != 0], rtol=1e-6)


ALL = Rates(embed=0.1, residual=0.2, attention=0.3, ffn=0.4, final=0.5, layers=0.05)


def test_rates_are_set_and_read_at_every_place():
    for config in (tiny.tiny_gpt2(), t5(2, 2, 8, hidden=12, head_dim=4, vocab_size=16)):
        assert rates_of(with_dropout(config, ALL)) == ALL
        assert with_dropout(with_dropout(config, ALL), Rates(*(0.0,) * 7)) == config
        assert with_dropout(config, Rates()) == config


def test_a_rate_without_its_place_is_refused():
    with pytest.raises(ValueError, match=r"rates.experts is 0.4 and the model has no such layer"):
        with_dropout(tiny.tiny_llama(), Rates(experts=0.4))
    with pytest.raises(ValueError, match=r"rates.attention is 0.1"):
        with_dropout(mamba2(1, 32, vocab_size=16), Rates(attention=0.1))


def test_without_a_key_nothing_is_dropped_and_with_one_layers_and_keys_differ():
    plain, model = build(tiny.tiny_gpt2(3)), build(with_dropout(tiny.tiny_gpt2(3), ALL))
    params, tokens = tiny.parameters(plain), tiny.tokens(2, 8)
    run = jax.jit(lambda key: model.apply({"params": params}, tokens, rngs={"dropout": key}).logits_BTV)
    without = [jax.jit(module.apply)({"params": params}, tokens).logits_BTV for module in (model, plain)]
    np.testing.assert_array_equal(*without)
    one, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any()


def test_what_is_computed_again_drops_the_same():
    config, tokens = with_dropout(tiny.tiny_gpt2(2), ALL), tiny.tokens(2, 8)
    params = tiny.parameters(build(config))

    def gradient(remat):
        model = build(dataclasses.replace(config, execution=Execution(remat, unroll=1)))
        loss = lambda p: jnp.sum(  # noqa: E731
            jnp.square(model.apply({"params": p}, tokens, rngs={"dropout": jax.random.key(3)}).logits_BTV)
        )
        return jax.jit(jax.grad(loss))(params)

    expected = gradient("none")
    for remat in ("full", "projections"):
        for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(gradient(remat)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4 * np.abs(one).max())


def test_a_place_of_pairs_without_dropout_has_none():
    assert Pairs(Causal(), PLACE, None, ScoresConfig()).drop is None


SMALL = Rates(embed=0.1, residual=0.1, attention=0.1)
PUBLISHED_RATES = {
    "gpt2": SMALL,
    "bert-base": SMALL,
    "roberta-large": SMALL,
    "electra-small": SMALL,
    "t5-small": dataclasses.replace(SMALL, ffn=0.1, final=0.1),
    "xlnet-base": dataclasses.replace(SMALL, final=0.1),
    "switch-base-8": dataclasses.replace(SMALL, ffn=0.1, final=0.1, experts=0.4),
    "switch-c-2048": dataclasses.replace(SMALL, final=0.1, experts=0.4),
    "transformer-base": Rates(embed=0.1, residual=0.1),
    "transformer-big": Rates(embed=0.3, residual=0.3),
    "bart-large": Rates(embed=0.1, residual=0.1),
    "opt-350m": Rates(residual=0.1, attention=0.1),
    "albert-base": Rates(),
    "t5-v1.1-small": Rates(),
    "gpt3-small": Rates(),
    "llama2-7b": Rates(),
}


@pytest.mark.parametrize("size", PUBLISHED_RATES)
def test_sizes_drop_as_they_were_trained(size):
    found = dataclasses.asdict(rates_of(SIZES[size]()))
    stated = dataclasses.asdict(PUBLISHED_RATES[size])
    assert {name: rate for name, rate in found.items() if rate} == {n: rate for n, rate in stated.items() if rate}
