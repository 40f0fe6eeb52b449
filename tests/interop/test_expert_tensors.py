"""Coefficients of balance losses go into a config.json and come back."""

import dataclasses

import pytest

from llm_jax.interop import parts
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.settings import Settings
from llm_jax.layers.ffn.balance import LoadLoss, SequenceLoss, ZLoss
from llm_jax.models.config import ModelConfig
from llm_jax.models.families import SIZES
from llm_jax.models.families.decoder import with_experts
from tests.helpers.published import EVERY

DEFAULTS = {"mixtral": 0.001, "qwen2_moe": 0.001, "qwen3_moe": 0.001, "olmoe": 0.01, "gpt_oss": 0.001, "dbrx": 0.01}
DEFAULTS |= {"granitemoe": 0.001}


def _options(name: str, config: ModelConfig) -> dict:
    written = FAMILIES[name].write(config)
    return written["ffn_config"] if name == "dbrx" else written


def _with(name: str, **options) -> ModelConfig:
    """The family's small model from a config.json with these options, None for none."""
    written = FAMILIES[name].write(EVERY[name])
    if name == "dbrx":
        written["ffn_config"] |= {"moe_loss_weight": options["router_aux_loss_coef"]}
    return FAMILIES[name].read(Settings(written | options))


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("stated", [0.3, 0.0, None])
def test_a_coefficient_goes_there_and_back(name: str, stated: float | None):
    config = _with(name, router_aux_loss_coef=stated)
    layer, layers = parts.expert_layer(config), len(parts.mixed_layers(config))
    expected = DEFAULTS[name] if stated is None else stated
    assert sum(one.weight for one in layer.balance) == pytest.approx(expected * layer.router.top / layers)
    option = "moe_loss_weight" if name == "dbrx" else "router_aux_loss_coef"
    assert _options(name, config)[option] == expected


@pytest.mark.parametrize("stated", [0.3, 0.0, None])
def test_switch_has_one_for_the_logits_too(stated: float | None):
    config = FAMILIES["switch_transformers"].write(EVERY["switch"])
    config |= {"router_aux_loss_coef": 0.02, "router_z_loss_coef": stated}
    pair = FAMILIES["switch_transformers"].read(Settings(config))
    again = FAMILIES["switch_transformers"].write(pair)
    z = 0.001 if stated is None else stated
    assert (again["router_aux_loss_coef"], again["router_z_loss_coef"]) == (0.02, z)
    for stack in pair.stacks:
        losses, layers = parts.expert_layer(stack).balance, len(parts.mixed_layers(stack))
        assert [type(one) for one in losses] == [LoadLoss, ZLoss][: 1 + (z > 0)]
        assert [one.weight for one in losses] == pytest.approx([0.02 / layers, z / layers][: len(losses)])


def test_what_a_file_cannot_say_of_balance_is_not_said():
    config = EVERY["mixtral"]
    layer = parts.expert_layer(config)
    for balance in ((), (SequenceLoss(),), (ZLoss(),), (LoadLoss(first=True),)):
        other = with_experts(config, dataclasses.replace(layer, balance=balance))
        assert FAMILIES["mixtral"].write(other)["router_aux_loss_coef"] == 0


@pytest.mark.parametrize(
    ("size", "coefficient"),
    [("mixtral-8x7b", 0.02), ("mixtral-8x22b", 0.001), ("qwen1.5-moe-a2.7b", 0.001), ("qwen3-235b-a22b", 0.001)],
)
def test_published_sizes_have_the_coefficients_of_their_files(size: str, coefficient: float):
    config = SIZES[size]()
    kind = next(kind for kind, family in FAMILIES.items() if family.expresses(config))
    assert FAMILIES[kind].write(config)["router_aux_loss_coef"] == coefficient


@pytest.mark.parametrize(("size", "weights"), [("olmoe-1b-7b", (0.01, 0.001)), ("dbrx", (0.05,))])
def test_means_over_layers_are_those_of_the_papers(size: str, weights: tuple[float, ...]):
    config = SIZES[size]()
    assert [one.weight * config.depth for one in parts.expert_layer(config).balance] == pytest.approx(weights)


@pytest.mark.parametrize("name", [name for name in SIZES if any(stack.experts for stack in SIZES[name]().stacks)])
def test_no_published_size_is_without_balance(name: str):
    assert all(layer.balance for stack in SIZES[name]().stacks for layer in stack.experts)
