"""Every family starts as it was published: the moments of what its parameters are drawn from, against a table that is
written here from papers and reference codes, which the docstrings of the families name."""

import math
import re
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llm_jax.core import trees
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig
from llm_jax.layers.norms import LayerNormConfig
from llm_jax.layers.positions.relative_bias import LayerRelativeBiasConfig
from llm_jax.models.block import Parallel
from llm_jax.models.build import abstract_parameters, build, initial_parameters
from llm_jax.models.families import MODULES, SIZES
from llm_jax.models.families.albert import albert
from llm_jax.models.families.bamba import bamba
from llm_jax.models.families.bart import bart, original
from llm_jax.models.families.bert import bert, discriminator, roberta
from llm_jax.models.families.bloom import bloom, mpt
from llm_jax.models.families.dbrx import dbrx
from llm_jax.models.families.deepseek import INIT, deepseek, experts
from llm_jax.models.families.falcon import falcon
from llm_jax.models.families.gemma import gemma
from llm_jax.models.families.glam import glam
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.gpt_neox import gpt_neox
from llm_jax.models.families.gpt_oss import gpt_oss
from llm_jax.models.families.gptj import gptj
from llm_jax.models.families.gshard import gshard
from llm_jax.models.families.lamda import lamda
from llm_jax.models.families.llama import llama
from llm_jax.models.families.lstm import lstm
from llm_jax.models.families.mamba2 import mamba2
from llm_jax.models.families.modernbert import head_transform, modernbert, sequence_head
from llm_jax.models.families.mpnet import mpnet
from llm_jax.models.families.olmo2 import olmo2
from llm_jax.models.families.olmoe import olmoe
from llm_jax.models.families.opt import opt
from llm_jax.models.families.palm import palm
from llm_jax.models.families.qwen_moe import qwen2_moe
from llm_jax.models.families.recurrent_gemma import recurrent_gemma
from llm_jax.models.families.retnet import retnet
from llm_jax.models.families.starcoder import starcoder, starcoder2
from llm_jax.models.families.switch import switch
from llm_jax.models.families.t5 import t5
from llm_jax.models.families.xlnet import xlnet

L, N, D, F, V, T = 3, 4, 64, 96, 512, 32
"""Layers, heads, width, ffn width, vocabulary, longest row."""
H = 8
"""Head size where it is free."""
OLD, SIZE = (L, N, D), {"vocab_size": V, "max_length": T}
NEW = SIZE | {"hidden": F}
DRAWS = 100_000


class Gauss(NamedTuple):
    """Standard deviation before the cut, and the cut in such."""

    stddev: float
    cut: float | None = None


class Even(NamedTuple):
    """Uniform between -limit and limit."""

    limit: float


class Always(NamedTuple):
    """A constant."""

    value: float


class Free(NamedTuple):
    """Drawn otherwise; tested where its layer is."""


NORMS_AND_BIASES = {r"/scale$": Always(1), r"/bias$": Always(0)}
INTO = r"(query|key|value|up|gate)/kernel"
OUT = r"(out|down)/kernel"
ROOT = math.sqrt(D)


def gpt(stddev: float, out: float, **more: Any) -> dict[str, Any]:
    """Matrices and table of one deviation, another of what writes to the stream."""
    return more | {OUT: Gauss(out), rf"{INTO}|table|head/kernel|scores/kernel": Gauss(stddev)} | NORMS_AND_BIASES


def of_t5(ffn: Any, gain: float = 1.0, cut: float | None = None, distance: Any = None) -> dict[str, Any]:
    """Gaussian of variance gain^2 / fan-in in attention."""
    return {
        r"(mixer|cross)/query/kernel": Gauss(gain / math.sqrt(D * H), cut),
        r"(mixer|cross)/(key|value)/kernel": Gauss(gain / ROOT, cut),
        r"(mixer|cross)/out/kernel": Gauss(gain / math.sqrt(N * H), cut),
        r"relative_bias/table": distance or Even(gain * math.sqrt(6 / (32 + N))),
        r"embed/table": Gauss(1.0),
        r"(ffn|experts)/down/kernel": ffn(F),
        r"(up|gate|scores|head)/kernel": ffn(D),
    } | NORMS_AND_BIASES


def lingvo() -> dict[str, Any]:
    """As T5's in attention but that scores have their scale, uniform elsewhere."""
    plain = of_t5(lambda fan: Even(math.sqrt(3 / fan)), distance=Gauss(1 / math.sqrt(N * 32)))
    return {r"mixer/query/kernel": Gauss(1 / ROOT)} | plain


BERT = {r"kernel|table|types": Gauss(0.02, 2.0)} | NORMS_AND_BIASES
DEEP = (8 * L) ** -0.25
PAIR = math.sqrt(6 / (D + D))
TORCH = Even(1 / ROOT)

FAMILIES = {
    "gpt2": (gpt2(*OLD, **SIZE), gpt(0.02, 0.02 / math.sqrt(2 * L), **{"positions/table": Gauss(0.01)})),
    "gptj": (
        gptj(*OLD, rotated=4, **SIZE),
        {
            "embed/table": Gauss(1 / math.sqrt(V), 2.0),
            OUT: Gauss(2 / (L * ROOT), 2.0),
            "kernel": Gauss(1 / ROOT, 2.0),
        }
        | NORMS_AND_BIASES,
    ),
    "gpt_neox": (gpt_neox(*OLD, **SIZE), gpt(math.sqrt(2 / (5 * D)), 2 / (L * ROOT))),
    "opt": (opt(*OLD, **SIZE), gpt(0.006, 0.006 / math.sqrt(2 * L))),
    "opt, 350m": (
        opt(*OLD, **SIZE, embed_width=48, post_norm=True),
        gpt(0.006, 0.006 / math.sqrt(2 * L), **{"widen|dense": Gauss(0.006)}),
    ),
    "llama": (llama(*OLD, **NEW), gpt(0.02, 0.02 / math.sqrt(2 * L))),
    "qwen2_moe": (
        qwen2_moe(*OLD, **NEW, kv_heads=2, experts=4, top=2, expert_hidden=F, shared_hidden=F),
        gpt(0.02, 0.02 / math.sqrt(2 * L), shared_gate=Gauss(0.02)),
    ),
    "olmo2": (olmo2(*OLD, **NEW), {"kernel|table": Gauss(0.02, 3.0)} | NORMS_AND_BIASES),
    "olmoe": (olmoe(*OLD, **NEW, experts=4, top=2), {"kernel|table": Gauss(0.02, 3.0)} | NORMS_AND_BIASES),
    "gemma": (gemma(*OLD, **NEW, kv_heads=2, head_dim=H), {"scale": Always(0)} | gpt(0.02, 0.02 / math.sqrt(2 * L))),
    "falcon": (falcon(*OLD, kv_heads=1, wiring=Parallel(), **SIZE), gpt(0.02, 0.02 / math.sqrt(2 * L))),
    "bloom": (bloom(*OLD, **SIZE), gpt(0.0048, 0.0048 / math.sqrt(2 * L))),
    "mpt": (
        mpt(*OLD, **SIZE),
        {
            "down/kernel": Gauss(math.sqrt(2 / (4 * D)) / math.sqrt(2 * L)),
            "out/kernel": Gauss(math.sqrt(2 / D) / math.sqrt(2 * L)),
            "kernel|table": Gauss(math.sqrt(2 / D)),
        }
        | NORMS_AND_BIASES,
    ),
    "starcoder": (starcoder(*OLD, **SIZE), gpt(1 / ROOT, 1 / ROOT / math.sqrt(2 * L))),
    "starcoder2": (starcoder2(*OLD, kv_heads=2, **SIZE, stddev=0.018), gpt(0.018, 0.018 / math.sqrt(2 * L))),
    "palm": (
        palm(*OLD, **SIZE),
        {
            "embed/table": Gauss(1.0),
            "mixer/out/kernel": Gauss(1 / math.sqrt(N * 256)),
            "ffn/down/kernel": Gauss(1 / math.sqrt(4 * D)),
            "kernel": Gauss(1 / ROOT),
        }
        | NORMS_AND_BIASES,
    ),
    "deepseek_v3": (
        deepseek(
            *OLD,
            **NEW,
            query_rank=24,
            rank=16,
            head_dim=H,
            rotary_dim=2,
            value_dim=H,
            layer=experts(4, F, SigmoidConfig(2, init=INIT), 1),
        ),
        {"kernel|table": Gauss(0.006)} | NORMS_AND_BIASES,
    ),
    "dbrx": (dbrx(*OLD, **NEW, kv_heads=2, experts=4, top=2), gpt(0.02, 0.02 / math.sqrt(2 * L))),
    "gpt_oss": (
        gpt_oss(*OLD, **NEW, kv_heads=2, head_dim=H, experts=4, top=2),
        gpt(0.02, 0.02 / math.sqrt(2 * L), sinks=Always(0)),
    ),
    "lamda": (lamda(*OLD, head_dim=H, hidden=F, **SIZE), lingvo()),
    "glam": (glam(*OLD, experts=4, head_dim=H, hidden=F, **SIZE), lingvo()),
    "gshard": (
        gshard(2, 4, N, D, hidden=F, head_dim=H, **SIZE),
        of_t5(lambda fan: Even(math.sqrt(3 / fan)), distance=Gauss(1 / math.sqrt(N * 32))),
    ),
    "t5": (t5(*OLD, **NEW, head_dim=H), of_t5(lambda fan: Gauss(1 / math.sqrt(fan), 2.0))),
    "umt5": (
        t5(*OLD, **NEW, head_dim=H, gated=True, tied=False, distances=LayerRelativeBiasConfig),
        of_t5(lambda fan: Gauss(1 / math.sqrt(fan), 2.0)),
    ),
    "t5 1.1": (t5(*OLD, **NEW, head_dim=H, gated=True, tied=False), of_t5(lambda fan: Gauss(1 / math.sqrt(fan), 2.0))),
    "switch": (
        switch(2, *OLD[1:], **NEW, head_dim=H, experts=4),
        of_t5(lambda fan: Gauss(math.sqrt(0.1 / fan), 2.0), math.sqrt(0.1), 2.0),
    ),
    "transformer": (
        original(*OLD, **SIZE),
        {
            "embed/table": Gauss(1 / ROOT),
            "(up|down)/kernel": Even(math.sqrt(6 / (5 * D))),
            "kernel": Even(PAIR),
        }
        | NORMS_AND_BIASES,
    ),
    "bart": (bart(*OLD, **SIZE), {"kernel|table": Gauss(0.02)} | NORMS_AND_BIASES),
    "bert": (bert(*OLD, **SIZE), BERT),
    "roberta": (roberta(*OLD), {"kernel|table|types": Gauss(0.02)} | NORMS_AND_BIASES),
    "mpnet": (mpnet(*OLD, **SIZE), {"kernel|table": Gauss(0.02)} | NORMS_AND_BIASES),
    "albert": (albert(*OLD, **SIZE, narrow=16), BERT),
    "electra": (
        bert(*OLD, **SIZE, narrow=16, head=discriminator()),
        {"widen/kernel": Even(math.sqrt(6 / (16 + D))), "head/kernel": Even(math.sqrt(6 / (D + 1)))} | BERT,
    ),
    "modernbert": (
        modernbert(*OLD, **NEW, bias=True, head=sequence_head(2, head_transform(L, LayerNormConfig(bias=False)))),
        {
            rf"{OUT}|transform/dense/kernel": Gauss(0.02 / math.sqrt(2 * L), 2.0),
            r"head/kernel": Gauss(1 / ROOT, 2.0),
            r"kernel|table": Gauss(0.02, 2.0),
        }
        | NORMS_AND_BIASES,
    ),
    "xlnet": (
        xlnet(*OLD, **SIZE),
        {r"by_\w+/bias|target|parts|kernel|table": Gauss(0.02)} | NORMS_AND_BIASES,
    ),
    "mamba2": (
        mamba2(L, D, vocab_size=V, max_length=T, head_dim=16, state_size=H, tied=False),
        {
            "convolution": Even(1 / math.sqrt(4)),
            "out/kernel": Even(1 / math.sqrt(2 * D) / math.sqrt(L)),
            "kernel": TORCH,
            "embed/table": Gauss(0.02),
            "step_bias|log_rate": Free(),
            "skip": Always(1),
        }
        | NORMS_AND_BIASES,
    ),
    "bamba": (
        bamba(*OLD, **NEW, kv_heads=2, attention=(1,), head_dim=16, state_size=H),
        {
            "convolution": Even(1 / math.sqrt(4)),
            "segment_1/block_0/mixer/out/kernel": Even(1 / ROOT / math.sqrt(2 * L)),
            "mixer/out/kernel": Even(1 / math.sqrt(2 * D) / math.sqrt(2 * L)),
            "ffn/down/kernel": Even(1 / math.sqrt(F) / math.sqrt(2 * L)),
            "kernel": TORCH,
            "embed/table": Gauss(0.02),
            "step_bias|log_rate": Free(),
            "skip": Always(1),
        }
        | NORMS_AND_BIASES,
    ),
    "recurrent_gemma": (
        recurrent_gemma(L, N, D, hidden=F, **SIZE, window=8),
        {
            "scale": Always(0),
            "convolution/kernel": Gauss(0.05),
            "decay$": Free(),
            "down/kernel": Gauss(math.sqrt(2 / (L * F))),
            "out/kernel": Gauss(math.sqrt(2 / (L * D))),
            "(input|decay)_gate/kernel": Gauss(1 / math.sqrt(D // N)),
            "kernel|table": Gauss(1 / ROOT),
        }
        | NORMS_AND_BIASES,
    ),
    "lstm": (lstm(L, D, vocab_size=V, max_length=T, limit=0.05), {"kernel|table|bias": Even(0.05)}),
    "retnet": (
        retnet(*OLD, **SIZE),
        {
            "embed/table": Gauss(1 / ROOT),
            "(value|out|up|down)/kernel": Gauss(DEEP * math.sqrt(2 / (3 * D))),
            "gate/kernel": Gauss(math.sqrt(2 / (3 * D))),
            "kernel": Gauss(math.sqrt(2 / (2 * D))),
        }
        | NORMS_AND_BIASES,
    ),
}


def _drawn(config: Any) -> dict[str, np.ndarray]:
    """Values of every parameter of a family, from the initialiser that made it, many more than it has."""
    made, plain = {}, nn.Module.param

    def param(module: nn.Module, name: str, init: Any, shape: tuple, *rest: Any, **options: Any) -> Any:
        made["/".join((*module.scope.path, name))] = init
        return plain(module, name, init, shape, *rest, **options)

    with mock.patch.object(nn.Module, "param", param):
        jax.eval_shape(lambda: initial_parameters(build(config), jax.random.key(0)))
    key = jax.random.key(0)
    return {path: np.asarray(nn.unbox(init(key, (DRAWS,), jnp.float32))) for path, init in made.items()}


def _check(path: str, values: np.ndarray, expected: Any) -> None:
    if isinstance(expected, Free):
        return
    if isinstance(expected, Always):
        assert (values == expected.value).all(), path
        return
    if isinstance(expected, Even):
        law, bound = scipy.stats.uniform(-expected.limit, 2 * expected.limit), expected.limit
    elif expected.cut is None:
        law, bound = scipy.stats.norm(scale=expected.stddev), None
    else:
        law = scipy.stats.truncnorm(-expected.cut, expected.cut, scale=expected.stddev)
        bound = expected.cut * expected.stddev
    largest = np.abs(values).max()
    assert abs(values.mean()) < 5 * law.std() / math.sqrt(DRAWS), path
    # Five standard errors of a Gaussian's deviation; those of the others are smaller.
    assert values.std() == pytest.approx(law.std(), rel=5 / math.sqrt(2 * DRAWS)), path
    if bound is None:
        assert largest > 3.7 * law.std(), path
    else:
        assert 0.99 * bound < largest <= bound * (1 + 1e-6), path


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_start_as_published(family):
    config, table = FAMILIES[family]
    for path, values in _drawn(config).items():
        found = [expected for pattern, expected in table.items() if re.search(pattern, path)]
        assert found, f"{path} is not in the table"
        _check(path, values, found[0])


def test_every_parameter_of_a_model_is_drawn_so():
    """The whole of one model, made as a run makes it: what is drawn fills its leaves, each layer by itself."""
    model = build(bert(*OLD, **SIZE))
    leaves = dict(trees.named_leaves(nn.unbox(jax.jit(lambda: initial_parameters(model, jax.random.key(0)))())))
    assert leaves.keys() == dict(trees.named_leaves(abstract_parameters(model)[0])).keys()
    law = scipy.stats.truncnorm(-2, 2, scale=0.02)
    table, up = np.asarray(leaves["embed/table"]), np.asarray(leaves["stack/segment_0/block_0/ffn/up/kernel"])
    for values in (table, *up):
        assert values.std() == pytest.approx(law.std(), rel=5 / math.sqrt(2 * values.size))
        assert 0.038 < np.abs(values).max() <= 0.04
    assert abs(np.corrcoef(up[0].ravel(), up[1].ravel())[0, 1]) < 5 / math.sqrt(up[0].size)


def test_sizes_have_their_published_deviation():
    assert [SIZES[f"starcoder2-{size}"]().embed.init.stddev for size in ("3b", "7b", "15b")] == pytest.approx(
        [0.018042, 0.018042, 0.01275], rel=1e-3
    )
    for size, layers in (("pythia-6.9b", 32), ("pythia-12b", 36)):
        config = SIZES[size]()
        mixer = config.segments[0].blocks[0].mixer
        assert (config.embed.init.stddev, mixer.init.stddev) == (0.02, 0.02)
        assert mixer.out_init.stddev == 0.02 / math.sqrt(2 * layers)
    assert SIZES["bloom"]().embed.init.stddev == SIZES["bloom-560m"]().embed.init.stddev == 0.0048
    assert [SIZES[f"lstm-{size}"]().embed.init.limit for size in ("small", "medium", "large")] == [0.1, 0.05, 0.04]
    assert SIZES["youtu-llm-2b"]().embed.init.stddev == 0.02
    assert SIZES["deepseek-v3"]().segments[-1].blocks[0].ffn.router.init.stddev == 0.006


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_family_names_the_source_of_its_initialisation(module):
    (paragraph,) = [part for part in module.__doc__.split("\n\n") if part.startswith("Initialisation: ")]
    assert re.search(r"github\.com|section|table|none is published|\d\.\d\.\d", paragraph)


def test_logits_of_palm_are_scaled_by_one_over_the_root_of_the_width():
    """A fresh PaLM scores with deviation 1 (section 5), where an unscaled table would give 8."""
    model = build(palm(1, N, D, **SIZE))
    shapes, _ = abstract_parameters(model)
    generator = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    hidden = generator.normal(size=(1, 1, D)).astype(np.float32)
    run = jax.jit(lambda params: (model.apply({"params": params}, hidden, method="unembed"), _logits(model, params)))
    scores, logits = run(params)
    np.testing.assert_allclose(scores[0, 0], hidden[0, 0] @ params["embed"]["table"].T / 8, rtol=1e-4, atol=1e-5)
    assert np.isfinite(logits).all()


def _logits(model: Any, params: Any) -> jax.Array:
    return model.apply({"params": params}, np.arange(T, dtype=np.int32)[None]).logits_BTV
