"""Whole runs over eight simulated devices. What the layouts themselves do is tests/sharding/test_eight_devices.py's."""

import json

import pytest

from llm_jax.training_run import run_training
from tests.helpers import command_line, compiler, tiny_run
from tests.integration import eight_devices_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    module = eight_devices_run.__name__
    process = command_line.start(folder, module=module, environment=compiler.devices(8))
    outcome = command_line.wait(process)
    assert outcome.code == 0, outcome.err[-3000:]
    return json.loads(outcome.out.splitlines()[-1]) | {"folder": folder / "runs"}


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("one")
    tiny_run.write_corpus(folder)
    return _losses(eight_devices_run.experiment_of(folder), folder, cache)


def _losses(experiment, folder, cache):
    return [record["loss"] for record in run_training(experiment, folder, cache).records()]


def test_the_losses_are_those_of_one_device(runs, one_device):
    assert runs["data"]["devices"] == runs["fsdp"]["devices"] == 8
    assert one_device[-1] < one_device[0] - 0.1
    for layout in ("data", "fsdp"):
        assert runs[layout]["losses"] == pytest.approx(one_device, rel=1e-5)


def test_fsdp_divides_the_state_and_data_parallelism_does_not(runs):
    assert runs["data"]["held"] == runs["data"]["bytes"] == runs["fsdp"]["bytes"]
    assert runs["fsdp"]["held"] < 0.4 * runs["fsdp"]["bytes"]


def test_a_frozen_model_is_divided_as_the_trained_one_and_changes_no_loss(runs, tmp_path, cache):
    facts = runs["student"]
    assert facts["frozen_held"] < 0.4 * facts["frozen_bytes"]
    tiny_run.write_corpus(tmp_path)
    alone = _losses(eight_devices_run.student(tmp_path, runs["folder"]), tmp_path, cache)
    assert facts["losses"] == pytest.approx(alone, rel=1e-5)


def test_a_pipeline_learns_and_its_card_has_the_bubble(runs, one_device):
    facts = runs["pipeline"]
    assert facts["pipeline"] == {"stages": 2, "microbatches": 2, "virtual_stages": 1, "bubble": pytest.approx(1 / 3)}
    assert runs["data"]["pipeline"] is None
    # Dropout draws otherwise than without stages, so that the losses are not the same.
    assert facts["losses"] == pytest.approx(one_device, rel=0.05) and facts["losses"][-1] < facts["losses"][0] - 0.1
    assert facts["held"] < 0.95 * facts["bytes"]  # all but embedding and head is halved


def test_a_checkpoint_goes_on_under_another_layout(runs):
    assert runs["resumed"]["step"] == 5
    assert runs["resumed"]["loss"] == pytest.approx(runs["fsdp"]["losses"][-2], rel=1e-5)
