"""A dense model becomes one with experts, and computes the same."""

import dataclasses

import jax
import numpy as np
import pytest

from llm_jax.core import trees
from llm_jax.layers.ffn.balance import BiasUpdate
from llm_jax.layers.ffn.dispatch.capacity import Capacity
from llm_jax.layers.ffn.dispatch.dense import Dense
from llm_jax.layers.ffn.dispatch.dropless import Dropless
from llm_jax.layers.ffn.mlp import GLUConfig, MLPConfig
from llm_jax.layers.ffn.moe import MoEConfig
from llm_jax.layers.ffn.routers.token_choice import SigmoidConfig, SoftmaxConfig
from llm_jax.models.build import build
from llm_jax.models.config import EncoderDecoderConfig, ModelConfig
from llm_jax.models.families.albert import albert
from llm_jax.models.families.decoder import with_experts
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.families.t5 import t5
from llm_jax.models.upcycle import check_upcycles, upcycled
from tests.helpers import tiny

LIMITS = {"vocab_size": tiny.VOCAB, "max_length": tiny.MAX_LENGTH}
LLAMA, GPT2 = llama(4, 4, 16, hidden=24, kv_heads=2, **LIMITS), gpt2(3, 4, 16, **LIMITS)
T5 = t5(2, 2, 16, hidden=24, head_dim=8, **LIMITS, dropout=0.1)
FFN = {"llama": GLUConfig(24), "gpt2": MLPConfig(64), "t5": MLPConfig(24, "relu", bias=False)}


def _t5(experts: MoEConfig) -> EncoderDecoderConfig:
    stacks = {"encoder": with_experts(T5.encoder, experts, [1]), "decoder": with_experts(T5.decoder, experts)}
    return dataclasses.replace(T5, **stacks)


def _experts(name: str, **changes) -> MoEConfig:
    return MoEConfig(
        **({"count": 5, "expert": FFN[name], "router": SoftmaxConfig(2), "dispatch": Dropless()} | changes)
    )


CASES = {
    "every other layer": (LLAMA, with_experts(LLAMA, _experts("llama"), [1, 3])),
    "the last layers": (LLAMA, with_experts(LLAMA, _experts("llama"), [2, 3])),
    "all layers, biases": (GPT2, with_experts(GPT2, _experts("gpt2", dispatch=Dense()))),
    "ample capacity": (GPT2, with_experts(GPT2, _experts("gpt2", dispatch=Capacity(5.0)))),
    "one choice": (GPT2, with_experts(GPT2, _experts("gpt2", router=SoftmaxConfig(1)))),
    "sigmoid": (LLAMA, with_experts(LLAMA, _experts("llama", router=SigmoidConfig(3), balance=(BiasUpdate(),)), [0])),
    "encoder and decoder": (T5, _t5(_experts("t5"))),
}


def _logits(config: ModelConfig, params) -> np.ndarray:
    model = build(config)
    inputs = tiny.inputs(config, 2, 10)
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, inputs).logits_BTV)(params))


@pytest.mark.parametrize("name", CASES)
def test_the_function_stays_what_it_was(name: str):
    dense, mixed = CASES[name]
    params, model = tiny.parameters(build(dense)), build(mixed)
    made = upcycled(dense, params, model, jax.random.key(0))
    expected = tiny.parameters(model)
    shapes = lambda tree: [(path, leaf.shape, leaf.dtype) for path, leaf in trees.named_leaves(tree)]  # noqa: E731
    assert shapes(made) == shapes(expected)
    before = _logits(dense, params)
    np.testing.assert_allclose(_logits(mixed, made), before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_experts_are_copies_and_routers_are_fresh():
    dense, mixed = CASES["every other layer"]
    params, model = tiny.parameters(build(dense)), build(mixed)
    one, other = (upcycled(dense, params, model, jax.random.key(seed)) for seed in (0, 1))
    ffn = one["stack"]["segment_0"]["block_1"]["ffn"]
    down = params["stack"]["segment_0"]["block_0"]["ffn"]["down"]["kernel"]
    for layer, number in enumerate((1, 3)):
        for expert in range(5):
            np.testing.assert_array_equal(ffn["experts"]["down"]["kernel"][layer, expert], down[number])
    routers = [tree["stack"]["segment_0"]["block_1"]["ffn"]["router"]["scores"]["kernel"] for tree in (one, other)]
    assert np.abs(routers[0] - routers[1]).max() > 0 and 0.01 < np.std(routers[0]) < 0.03


def test_weights_that_do_not_add_up_to_one_give_a_part_of_the_function():
    mixed = with_experts(GPT2, _experts("gpt2", router=SoftmaxConfig(1, normalized=False)))
    params = tiny.parameters(build(GPT2))
    made = upcycled(GPT2, params, build(mixed), jax.random.key(0))
    assert np.abs(_logits(mixed, made) - _logits(GPT2, params)).max() > 0.1


REFUSED = [
    (llama(4, 4, 24, hidden=24, kv_heads=2, **LIMITS), "width is 16 in the dense model and 24 in the MoE model"),
    (llama(3, 4, 16, hidden=24, kv_heads=2, **LIMITS), "the dense model has 4 layers and the MoE model 3"),
    (
        llama(4, 4, 16, hidden=24, kv_heads=4, **LIMITS),
        "layer 0 differs outside its ffn: only the ffn may change",
    ),
    (dataclasses.replace(LLAMA, embed=GPT2.embed), "embed is .* in the dense model and .* only the ffn may change"),
]


@pytest.mark.parametrize(("other", "message"), REFUSED, ids=lambda value: str(value)[:20])
def test_another_shape_is_refused(other, message: str):
    mixed = with_experts(other, _experts("llama"))
    with pytest.raises(ValueError, match=message):
        check_upcycles(LLAMA, mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": GLUConfig(12)}, r"the experts of layer 1 are GLUConfig\(hidden=12.*set `expert` to the dense ffn"),
        ({"expert": MLPConfig(24)}, "the experts of layer 1 are MLPConfig"),
        ({"shared": GLUConfig(24)}, "layer 1 has a shared expert.* set `shared` to None"),
    ],
)
def test_experts_of_another_shape_are_refused(changes, message: str):
    mixed = with_experts(LLAMA, _experts("llama", **changes), [1])
    with pytest.raises(ValueError, match=message):
        upcycled(LLAMA, tiny.parameters(build(LLAMA)), build(mixed), jax.random.key(0))


def test_another_kind_of_model_and_shared_layers_are_refused():
    with pytest.raises(ValueError, match="TransformerConfig cannot become EncoderDecoderConfig"):
        check_upcycles(LLAMA, T5)
    with pytest.raises(ValueError, match="layers share their weights"):
        check_upcycles(albert(2, 4, 16), albert(2, 4, 16))


def test_what_only_training_depends_on_may_differ():
    mixed = with_experts(LLAMA, _experts("llama", expert=dataclasses.replace(FFN["llama"], init=GLUConfig(1).init)))
    check_upcycles(dataclasses.replace(LLAMA, execution=dataclasses.replace(LLAMA.execution, remat="full")), mixed)
