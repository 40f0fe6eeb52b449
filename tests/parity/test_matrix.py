"""Every strategy trains every kind of model as one device does, and its program shows that it is what it says."""

import json

import pytest

from llm_jax.parity.case import WAYS, ParityCase
from llm_jax.parity.models import MODELS
from llm_jax.parity.strategies import STRATEGIES
from llm_jax.parity.table import is_right
from tests.helpers import command_line

pytestmark = pytest.mark.slow

_EACH_MEANS = (
    "data parallel",
    "pmap",
    "ZeRO-2",
    "FSDP, state in host memory",
    "tensor, sequence",
    "ring",
    "all-to-all",
    "pipeline, two virtual stages",
    "FSDP x tensor, sequence x all-to-all",
    "ZeRO-1 x tensor x pipeline",
    "pipeline x ring",
)
"""Strategies that have every means between them: each rule of sharding, each exchange, virtual stages, host memory, and
products of two and three."""
_SOME = ("pipeline, two virtual stages", "FSDP x tensor x ring")
"""For models with cross attention or recurrences."""
BY_MODEL = {
    "decoder": _EACH_MEANS,
    "encoder-decoder": _SOME,
    "hybrid": _SOME,
    "mixture": ("expert axis", "expert x FSDP", "expert x tensor, sequence", "expert x pipeline"),
}
FEW = ("pmap", "FSDP x tensor, sequence")
"""Strategies under which all ways to run a model are tried; `llm-jax parity --ways all` tries all under all."""


def _measured(folder, *arguments: object) -> list[ParityCase]:
    output = folder / "cells.json"
    process = command_line.start("parity", *arguments, "--output", output)
    outcome = command_line.wait(process, seconds=900)
    assert output.exists(), outcome.said
    cells = [ParityCase(**found) for found in json.loads(output.read_text())]
    assert (outcome.code == 0) == all(map(is_right, cells)), outcome.said
    return cells


@pytest.mark.parametrize("model", MODELS)
def test_a_strategy_of_each_means_trains_as_one_device_does(tmp_path, model):
    _assert_right(tmp_path, model, BY_MODEL[model])


@pytest.mark.full(reason="test_a_strategy_of_each_means_trains_as_one_device_does")
def test_all_other_strategies_train_as_one_device_does(tmp_path):
    _assert_right(tmp_path, "decoder", tuple(name for name in STRATEGIES if name not in _EACH_MEANS))


def _assert_right(folder, model: str, strategies: tuple[str, ...]) -> None:
    cells = _measured(folder, "--models", model, "--strategies", *strategies)
    assert [found.strategy for found in cells] == list(strategies)
    assert [found for found in cells if not is_right(found)] == []


@pytest.mark.full(reason="tests/models/test_transformer.py has the ways on one device")
def test_how_the_model_is_run_changes_nothing(tmp_path):
    ways = [way for way in WAYS if way != "loop"]
    cells = _measured(tmp_path, "--models", "decoder", "--strategies", *FEW, "--ways", *ways)
    assert [(found.strategy, found.way) for found in cells] == [(name, way) for name in FEW for way in ways]
    assert [found for found in cells if not is_right(found)] == []
