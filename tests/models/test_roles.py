"""Roles of the parameters of whole models, and what optimizers make of them."""

import dataclasses

import jax
import pytest

from llm_jax.core import trees
from llm_jax.layers.ffn.dispatch.slots import Slots
from llm_jax.layers.ffn.mlp import GLUConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.router_scores import Noisy
from llm_jax.layers.ffn.routers.soft import SoftConfig
from llm_jax.layers.ffn.routers.token_choice import SoftmaxConfig
from llm_jax.layers.roles import Role, roles_of, unboxed
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.decoder import with_experts
from llm_jax.optim.decay_masks import DecayMatrices
from llm_jax.optim.matrix_layouts import layouts
from llm_jax.optim.muon import is_orthogonalised
from tests.helpers import tiny
from tests.helpers.published import EVERY, described


def _with(**router) -> TransformerConfig:
    return with_experts(tiny.tiny_llama(), MoEConfig(4, GLUConfig(16), **router), (0, 1))


MODELS = EVERY | {
    "noisy router": _with(router=SoftmaxConfig(2, noise=Noisy())),
    "soft router": _with(router=SoftConfig(2, tiny.MAX_LENGTH), dispatch=Slots()),
}

BLOCK = "stack/segment_0/block_0"
KNOWN = {
    "llama": {
        "embed/table": Role.EMBEDDING,
        f"{BLOCK}/mixer_norm/scale": Role.NORM,
        f"{BLOCK}/mixer/query/kernel": Role.MATRIX,
        f"{BLOCK}/mixer/out/kernel": Role.MATRIX,
        f"{BLOCK}/ffn/down/kernel": Role.MATRIX,
        "head/kernel": Role.READOUT,
    },
    "gpt2": {
        "embed/positions/table": Role.TABLE,
        f"{BLOCK}/mixer_norm/bias": Role.BIAS,
        f"{BLOCK}/mixer/query/bias": Role.BIAS,
    },
    "bert, rows": {
        "embed/types": Role.TABLE,
        "head/transform/dense/kernel": Role.MATRIX,
        "head/kernel": Role.READOUT,
        "head/bias": Role.BIAS,
    },
    "electra, generator": {"embed/widen/kernel": Role.MATRIX},
    "t5": {"decoder/relative_bias/table": Role.TABLE, "decoder/embed/table": Role.EMBEDDING},
    "xlnet": {
        "embed/target": Role.VECTOR,
        f"{BLOCK}/mixer/parts": Role.TABLE,
        f"{BLOCK}/mixer/by_content/bias": Role.BIAS,
    },
    "gpt_oss": {
        f"{BLOCK}/mixer/sinks": Role.BIAS,
        f"{BLOCK}/ffn/experts/gate/kernel": Role.EXPERT,
        f"{BLOCK}/ffn/experts/gate/bias": Role.BIAS,
        f"{BLOCK}/ffn/router/scores/kernel": Role.ROUTER,
        f"{BLOCK}/ffn/router/scores/bias": Role.BIAS,
    },
    "deepseek_v3": {
        "stack/segment_1/block_0/ffn/router/bias": Role.BALANCE,
        "stack/segment_1/block_0/ffn/shared/up/kernel": Role.MATRIX,
    },
    "qwen2_moe": {"stack/segment_1/block_0/ffn/shared_gate/kernel": Role.READOUT},
    "noisy router": {f"{BLOCK}/ffn/router/noise/kernel": Role.ROUTER},
    "soft router": {f"{BLOCK}/ffn/router/scores/kernel": Role.ROUTER, f"{BLOCK}/ffn/router/scale": Role.SCALE},
    "mamba2": {
        f"{BLOCK}/mixer/convolution/kernel": Role.CONVOLUTION,
        f"{BLOCK}/mixer/log_rate": Role.RATE,
        f"{BLOCK}/mixer/step_bias": Role.BIAS,
        f"{BLOCK}/mixer/skip": Role.SCALE,
        f"{BLOCK}/mixer/norm/scale": Role.NORM,
    },
    "recurrent_gemma": {
        f"{BLOCK}/mixer/decay": Role.RATE,
        f"{BLOCK}/mixer/decay_gate/kernel": Role.MATRIX,
        f"{BLOCK}/mixer/convolution/bias": Role.BIAS,
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_parameters_have_the_roles_that_the_field_gives_them(name):
    found = dict(trees.named_leaves(roles_of(described(MODELS[name]))))
    assert {path: found[path] for path in KNOWN[name]} == KNOWN[name]


def test_every_role_is_known_of_some_parameter():
    assert {role for known in KNOWN.values() for role in known.values()} == set(Role)


SCORED = {"vocab", "classes", "routes", "positions", "types"}
"""Words of an axis along which things are numbered that a width does not multiply."""


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_the_role_that_its_axes_imply(name):
    """An oracle by axes and names, which optimizers used to ask: what decays is what has two axes beside those that
    stack and is no bias or scale of norms, and Muon takes of that what neither is looked up nor scores."""
    parameters = described(MODELS[name])
    tree = layouts(parameters)
    assert jax.tree.structure(tree) == jax.tree.structure(unboxed(parameters))
    decays = dict(trees.named_leaves(DecayMatrices().select(tree)))
    for path, layout in trees.named_leaves(tree):
        matrix = len(layout.item) >= 2 and not path.endswith(("/bias", "_norm/scale"))
        assert decays[path] == layout.is_matrix == matrix, path
        assert is_orthogonalised(layout) == (matrix and not SCORED & set(layout.logical_axes)), path
        assert (layout.role == Role.EXPERT) == (matrix and "experts" in layout.logical_axes), path


def test_layers_that_share_their_weights_have_the_roles_of_those_that_do_not():
    (segment,) = EVERY["llama"].segments
    scanned, shared = (
        dataclasses.replace(EVERY["llama"], segments=(dataclasses.replace(segment, shared=shared),))
        for shared in (False, True)
    )
    assert roles_of(described(scanned)) == roles_of(described(shared))
