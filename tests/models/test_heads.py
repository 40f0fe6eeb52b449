"""Heads against their formulas in numpy."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.layers.initialisers import Normal
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.models.families.encoder import sequence_head
from llm_jax.models.heads import AnyHead, ClassHead, Head, HeadConfig, ScaledHead, TiedHead, TransformConfig
from llm_jax.models.transformer import Transformer
from tests.helpers import tiny
from tests.helpers.published import ENCODERS

B, T, D, E, V = 2, 3, 6, 4, 11
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(B, T, D)).astype(np.float32)
TABLE = {width: GENERATOR.normal(size=(V, width)).astype(np.float32) for width in (D, E)}


def _params(head: Head) -> dict:
    init = functools.partial(head.init, attend=lambda x: jnp.zeros((*x.shape[:2], V)))
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0), jnp.asarray(X)))
    return jax.tree.map(lambda leaf: GENERATOR.normal(size=leaf.shape).astype(np.float32), dict(shapes)).get(
        "params", {}
    )


def _transformed(x, p, activation):
    x = activation(x @ p["dense"]["kernel"] + p["dense"].get("bias", 0))
    if "norm" not in p:
        return x
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p["norm"]["scale"] + p["norm"]["bias"]


def _gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _tied(x, p):
    return x @ TABLE[x.shape[-1]].T


def _dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


NORMED = TransformConfig("gelu", LayerNormConfig())
# Width of the embedding, and the scores.
HEADS = {
    "own": (HeadConfig(), D, _dense),
    "own, scaled": (ScaledHead(bias=True, scale=0.3), D, lambda x, p: _dense(0.3 * x, p)),
    "own, biased, bounded": (HeadConfig(bias=True, softcap=2.0), D, lambda x, p: 2 * np.tanh(_dense(x, p) / 2)),
    "own, transformed": (
        HeadConfig(transform=NORMED),
        D,
        lambda x, p: _dense(_transformed(x, p["transform"], _gelu), p),
    ),
    "tied": (TiedHead(), D, _tied),
    "tied, scaled": (TiedHead(scale=0.5), D, lambda x, p: _tied(x, p) / 2),
    "tied, narrow": (
        TiedHead(bias=True, transform=NORMED),
        E,
        lambda x, p: _tied(_transformed(x, p["transform"], _gelu), p) + p["bias"],
    ),
    "tied, narrow, linear": (
        TiedHead(scale=2.0, softcap=3.0, transform=TransformConfig(None, bias=False)),
        E,
        lambda x, p: 3 * np.tanh(2 * _tied(x @ p["transform"]["dense"]["kernel"], p) / 3),
    ),
    "tokens": (ClassHead(5), D, _dense),
    "spans": (ClassHead(2, "span", bias=False), D, _dense),
    "one class": (
        ClassHead(1, transform=TransformConfig("gelu")),
        D,
        lambda x, p: _dense(_transformed(x, p["transform"], _gelu), p),
    ),
    "rows": (sequence_head(3), E, lambda x, p: _dense(_transformed(x[:, :1], p["transform"], np.tanh), p)),
}


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_those_of_the_formula(name: str):
    config, embed_width, formula = HEADS[name]
    head = Head(config, D, V, embed_width, Precision())
    params = _params(head)
    scores = jax.jit(lambda: head.apply({"params": params}, X, lambda x: x @ TABLE[embed_width].T))()
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, formula(X, params), rtol=1e-4, atol=1e-4)
    assert config.parameters(D, V, embed_width) == trees.count(params)
    low, table = Head(config, D, V, embed_width, MIXED), TABLE[embed_width].T
    kept = jax.eval_shape(lambda: low.apply({"params": params}, X, lambda x: x @ table.astype(x.dtype)))
    assert kept.dtype == jnp.float32


@pytest.mark.parametrize("name", HEADS)
def test_matrix_products_are_counted(name: str):
    config, embed_width, _ = HEADS[name]
    head = Head(config, D, V, embed_width, Precision())
    params = _params(head)
    kernels = sum(leaf.size for path, leaf in trees.named_leaves(params) if path.endswith("kernel"))
    if isinstance(config, TiedHead):
        kernels += TABLE[embed_width].size
    assert config.matrix_flops(D, V, embed_width) == (0 if name == "rows" else 2 * kernels)


def test_kernels_start_with_the_scales_of_their_configs_and_have_axes():
    head = Head(ClassHead(300, transform=TransformConfig(init=Normal(0.5)), init=Normal(0.1)), 200, V, 200, Precision())
    boxed = jax.jit(lambda: head.init(jax.random.key(0), jnp.zeros((1, 1, 200)), None)["params"])()
    assert boxed["kernel"].names == ("embed", "classes") and boxed["bias"].names == ("classes",)
    params = nn.unbox(boxed)
    np.testing.assert_allclose(np.std(params["kernel"]), 0.1, rtol=0.05)
    np.testing.assert_allclose(np.std(params["transform"]["dense"]["kernel"]), 0.5, rtol=0.05)


def test_what_scores_of_classes_read_is_dropped_in_training_only():
    head = Head(ClassHead(2, dropout=0.5), D, V, D, Precision())
    params = _params(head)
    run = jax.jit(lambda key: head.apply({"params": params}, X, None, rngs={"dropout": key}))
    plain = jax.jit(lambda: head.apply({"params": params}, X, None))()
    one, two = (run(jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - two).max() > 1e-3
    always = Head(ClassHead(2, dropout=1.0), D, V, D, Precision())
    nothing = jax.jit(lambda key: always.apply({"params": params}, X, None, rngs={"dropout": key}))(jax.random.key(0))
    np.testing.assert_allclose(nothing, np.broadcast_to(params["bias"], nothing.shape))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (TiedHead(), ("embed",)),
        (TiedHead(bias=True), ("embed", "head")),
        (TiedHead(transform=NORMED), ("embed", "head")),
        (HeadConfig(), ("head",)),
        (ClassHead(2), ("head",)),
    ],
)
def test_the_parameters_that_scores_need_are_named(head: AnyHead, expected: tuple[str, ...]):
    model = Transformer(dataclasses.replace(tiny.tiny_llama(), head=head))
    params = {"embed": 1, "stack": 2, "head": 3}
    assert model.unembed_parameters(params) == {name: params[name] for name in expected}


def test_a_model_without_a_head_gives_hidden_states():
    config = dataclasses.replace(ENCODERS["bert"], head=None)
    model = Transformer(config)
    params = tiny.parameters(model)
    output = jax.eval_shape(model.apply, {"params": params}, tiny.tokens(2, 8))
    assert output.logits_BTV is None and output.hidden_BTD.shape == (2, 8, 16) and "head" not in params


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TransformConfig("gulu"), "activation is 'gulu': .* did you mean 'gelu'"),
        (lambda: HeadConfig(softcap=0.0), "softcap is 0.0: it must be greater than 0"),
        (lambda: TiedHead(softcap=-1.0), "softcap is -1.0"),
        (lambda: TiedHead(scale=0.0), "scale is 0.0"),
        (lambda: ClassHead(0), "classes is 0"),
        (lambda: ClassHead(2, "sequences"), "of is 'sequences': .* did you mean 'sequence'"),
        (lambda: ClassHead(3, "span"), "classes is 3: a span head requires 2, start and end"),
        (lambda: ClassHead(2, dropout=2.0), "dropout is 2.0"),
        (lambda: ClassHead(2, softcap=0.0), "softcap is 0.0"),
    ],
)
def test_bad_values_are_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()
