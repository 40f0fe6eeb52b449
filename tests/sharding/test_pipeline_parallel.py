"""A pipeline does what one device does, each stage holding its layers. The program is tests/helpers/pipelines.py."""

import numpy as np
import pytest

from tests.helpers import devices, tiny
from tests.helpers.pipelines import LENGTH, PIPELINES, ROWS

pytestmark = pytest.mark.slow

WIDTH, NUMBER = 16, 4  # of the models; bytes of a float32


@pytest.fixture(scope="module")
def run():
    result = devices.run("pipelines")
    return devices.printed(result) | {"stderr": result.stderr}


@pytest.mark.parametrize("name", PIPELINES)
def test_losses_gradients_and_weights_are_those_of_one_device(run, name):
    facts = run[name]
    assert facts["wanted"][-1] < facts["wanted"][0] - 0.01
    np.testing.assert_allclose(facts["losses"], facts["wanted"], rtol=1e-5)
    assert facts["gradient_difference"] < 1e-4 and facts["parameter_difference"] < 1e-4
    assert facts["least"] > 0  # every parameter has a gradient


def test_stages_hold_their_layers_and_what_is_not_cut_lies_everywhere(run):
    shares = {name: run[name]["shares"] for name in PIPELINES}
    assert shares["2 stages"] == {"segment_0": 1 / 2} and shares["rounds"] == {"segment_0": 1 / 4}
    # FSDP and tensor parallelism divide all but norms.
    assert 1 / 8 < shares["product"]["segment_0"] < 1 / 7
    assert shares["segments"] == {"segment_0": 1 / 2, "segment_1": 1, "segment_2": 1}


@pytest.mark.parametrize("name", ["2 stages", "product"])
def test_a_device_computes_its_share_and_the_bubble(run, name):
    """Stages compute in the bubble too; the head outside of them is computed once. Each device computes the small
    products that hold the cosines and sines on CPUs (`layers.reuse`), within the tolerance."""
    head = 3 * 2 * ROWS * LENGTH * WIDTH * tiny.VOCAB
    stages = (run["flops"] - head) / (1 - run[name]["bubble"])
    assert run[name]["exact"] and run[name]["flops"] == pytest.approx((head + stages) / 8, rel=2e-3)


@pytest.mark.parametrize(("name", "microbatch"), [("2 stages", 1), ("rounds", 2)])
def test_rows_go_to_neighbours_and_gradients_are_summed_once(run, name, microbatch):
    exchanged = run[name]["exchanged"]
    assert set(exchanged) == {"all-reduce", "collective-permute"}
    assert not any(in_loop for in_loop, _, _ in exchanged["all-reduce"])
    size = microbatch * LENGTH * WIDTH * NUMBER
    # Those under way and those that wait, forward and backward; and whole numbers, which say where tokens stand.
    found = [(count, size) for in_loop, count, size in exchanged["collective-permute"] if in_loop]
    rows = [pair for pair in found if pair[1] == size]
    assert rows == [(run[name]["steps"], size)] * 4
    assert all(one[1] == size * 2 // WIDTH // 2 for one in found if one not in rows)


def test_rounds_exchange_the_weights_once_forward_and_once_backward(run):
    held = run["rounds"]["stack"] / 4
    outside = [size for in_loop, _, size in run["rounds"]["exchanged"]["collective-permute"] if not in_loop]
    assert not [one for one in run["2 stages"]["exchanged"]["collective-permute"] if not one[0] and one[2] > 1024]
    # Beside them only a microbatch that enters, and its gradient, and where its tokens stand.
    assert 2 * held <= sum(outside) < 2 * held + 3 * 1024


def test_fully_sharded_stages_gather_no_more_than_their_own_layers(run):
    facts = run["product"]
    gathered = [size for in_loop, _, size in facts["exchanged"]["all-gather"] if not in_loop]
    assert 0 < max(gathered) <= max(facts["matrices"]) / 4  # two stages, each cut in two by features


def test_a_model_writes_and_scores_as_on_one_device(run):
    assert run["written"] == run["wanted"]


def test_dropout_differs_by_layer_row_and_seed(run):
    """Each of 8 branches adds one to a feature or not: together a binomial number if they are independent."""
    facts, counts = run["dropped"], np.array(run["dropped"]["counts"])
    assert facts["same"] and not facts["other"]
    assert counts.shape == (ROWS, LENGTH * WIDTH) and set(np.unique(counts)) <= set(range(9))
    assert counts.mean() == pytest.approx(4, abs=0.15)
    assert counts.var() == pytest.approx(2, abs=0.3)  # 4 if two stages, or the blocks of one, drew alike
    correlation = np.corrcoef(counts) - np.eye(ROWS)
    assert np.abs(correlation).max() < 0.5


def test_the_backward_pass_keeps_what_the_policy_says_and_no_weights_of_single_steps(run):
    bytes_of = {remat: facts[0] for remat, facts in run["kept"].items()}
    assert bytes_of["none"] > bytes_of["dots"] > bytes_of["projections"] > bytes_of["full"]
    assert not any(matrices for _, matrices in run["kept"].values())


def test_rows_that_cannot_be_cut_are_refused(run):
    assert "a batch has 8 sequences on 4 replicas of the stages" in run["refused"]


def test_the_compiler_finds_a_way_between_all_layouts(run):
    assert "Involuntary full rematerialization" not in run["stderr"]
