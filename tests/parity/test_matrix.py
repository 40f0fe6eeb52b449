"""Every strategy trains every kind of model as one device does, and its program shows that it is what it says."""

import json

import pytest

from llm_jax.parity.case import WAYS, ParityCase
from llm_jax.parity.models import MODELS
from llm_jax.parity.strategies import STRATEGIES
from llm_jax.parity.table import is_right
from tests.helpers import command_line

pytestmark = pytest.mark.slow

STEPS = 4
EXPERTS = ("tensor, sequence", "expert x FSDP", "expert x pipeline")
STACKS = ("pipeline, two virtual stages", "FSDP x tensor x ring")
"""For models with cross attention or recurrences, each by means of its own."""
PLAIN = (
    *("data parallel", "pmap", "ZeRO-2", "FSDP, state in host memory", "tensor"),
    *("FSDP x tensor, sequence x all-to-all", "ZeRO-1 x tensor x pipeline", "pipeline x ring"),
)
GROUPS = {
    ("decoder",): PLAIN,
    ("encoder-decoder", "hybrid"): STACKS,
    ("encoder", "encoder-decoder, spans"): STACKS[1:],
    ("mixture",): EXPERTS,
}
"""Every strategy class, every means of exchange and every kind of combination once, of any model."""
DENSE = tuple(name for name in STRATEGIES if not name.startswith("expert"))
REST = {
    "decoder": tuple(name for name in STRATEGIES if not name.startswith("expert x") and name not in PLAIN),
    "encoder": tuple(name for name in DENSE if name not in STACKS[1:]),
    "encoder-decoder": tuple(name for name in DENSE if name not in STACKS),
    "encoder-decoder, spans": tuple(name for name in DENSE if name not in STACKS[1:]),
    "hybrid": ("all-to-all",),
    "mixture": ("expert axis", "expert x tensor, sequence"),
}
"""`llm-jax parity` makes the whole matrix."""
FEW = ("pmap", "FSDP x tensor, sequence")
"""Strategies under which all ways to run a model are tried; `llm-jax parity --ways all` tries all under all."""


def _measured(folder, models, strategies, *words: object) -> list[ParityCase]:
    output = folder / "cells.json"
    arguments = ("--models", *models, "--strategies", *strategies, "--steps", STEPS, *words)
    process = command_line.start("parity", *arguments, "--output", output)
    outcome = command_line.wait(process, seconds=900)
    assert output.exists(), outcome.said
    cells = [ParityCase(**found) for found in json.loads(output.read_text())]
    assert (outcome.code == 0) == all(map(is_right, cells)), outcome.said
    return cells


def _check(folder, models, strategies) -> None:
    cells = _measured(folder, models, strategies)
    assert [(found.model, found.strategy) for found in cells] == [(one, name) for one in models for name in strategies]
    assert [found for found in cells if not is_right(found)] == []


@pytest.mark.parametrize("models", GROUPS, ids=", ".join)
def test_every_kind_of_strategy_trains_as_one_device_does(tmp_path, models):
    _check(tmp_path, models, GROUPS[models])


@pytest.mark.full(reason="test_every_kind_of_strategy_trains_as_one_device_does has what these strategies are made of")
@pytest.mark.parametrize("model", MODELS)
def test_the_other_strategies_train_as_one_device_does(tmp_path, model):
    _check(tmp_path, (model,), REST[model])


@pytest.mark.full(reason="tests/models/test_transformer.py has the ways on one device")
def test_how_the_model_is_run_changes_nothing(tmp_path):
    ways = [way for way in WAYS if way != "loop"]
    cells = _measured(tmp_path, ("decoder",), FEW, "--ways", *ways)
    assert [(found.strategy, found.way) for found in cells] == [(name, way) for name in FEW for way in ways]
    assert [found for found in cells if not is_right(found)] == []
