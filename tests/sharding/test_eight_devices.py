"""Eight devices begin as one does, hold the shares that a layout says, and read a cache in each. The program itself is
tests/helpers/eight_devices.py; that all strategies train alike is tests/parity/test_matrix.py's."""

import numpy as np
import pytest

from tests.helpers import devices, tiny

pytestmark = pytest.mark.slow

LAYOUTS = ("fsdp", "wide tensor and ring", "fsdp and tensor", "pipeline")


@pytest.fixture(scope="module")
def run():
    result = devices.run("eight_devices")
    return devices.printed(result) | {"stderr": result.stderr}


def test_layouts_differ(run):
    assert [run[name]["query_shards"] for name in ("one", *LAYOUTS)] == [1, 4, 4, 4, 4]
    assert run["one"]["gathered"] == [] and run["fsdp"]["gathered"] != []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_initial_weights_do_not_depend_on_the_mesh(run, layout):
    np.testing.assert_allclose(run[layout]["initial"], run["one"]["initial"], rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradients_and_weights_are_those_of_one_device(run, layout):
    assert run["one"]["losses"][1] < run["one"]["losses"][0] - 0.01
    np.testing.assert_allclose(run[layout]["losses"], run["one"]["losses"], rtol=1e-6)
    for part in ("opt_state", "params", "ema"):
        assert run[layout][f"{part}_difference"] < 1e-4


def test_more_devices_than_key_value_heads_hold_them_whole_and_divide_all_else(run):
    facts = run["wide tensor and ring"]
    whole = facts["key_values"] + facts["norms"]
    share = (facts["parameters"]["all"] - whole) / 4 + whole
    assert facts["parameters"]["device"] == share
    assert not [shape for shape in facts["gathered"] if tiny.VOCAB in shape and len(shape) > 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_is_read_as_on_one_device(run, layout):
    np.testing.assert_allclose(run[layout]["scores"], run["one"]["scores"], atol=1e-4)


def test_fsdp_divides_parameters_optimizer_state_and_average(run):
    facts = run["fsdp"]
    share = (facts["parameters"]["all"] - facts["norms"]) / 4 + facts["norms"]
    assert facts["parameters"]["device"] == facts["average"]["device"] == share
    counters = 8  # bytes of the updates that Adam and the schedule count
    assert facts["optimizer"]["all"] == 2 * facts["parameters"]["all"] + counters
    assert facts["optimizer"]["device"] == 2 * share + counters


def test_fsdp_gathers_one_layer_at_a_time(run):
    # A gather of all layers' weights or gradients at once would need the memory that FSDP is there to save.
    assert run["fsdp"]["stacked"]
    assert not [shape for shape in run["fsdp"]["gathered"] if shape in run["fsdp"]["stacked"]]


def test_fsdp_and_tensor_parallel_divide_all_but_norms_and_gather_no_scores(run):
    facts = run["fsdp and tensor"]
    share = (facts["parameters"]["all"] - facts["norms"]) / 4 + facts["norms"]
    assert facts["parameters"]["device"] == facts["average"]["device"] == share
    # Scores of a device's rows, [rows, length, vocabulary], are never brought together.
    assert not [shape for shape in facts["gathered"] if tiny.VOCAB in shape and len(shape) > 2]


def test_the_compiler_finds_a_way_between_all_layouts(run):
    # Otherwise it replicates the activations of the whole batch on every device. (jax 0.10 says so, 0.12 is silent.)
    assert "Involuntary full rematerialization" not in run["stderr"]
