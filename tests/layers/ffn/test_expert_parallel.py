"""Experts that lie on several devices serve all tokens. The program is tests/helpers/expert_parallel.py; that models
with such experts train as on one device is tests/parity/test_matrix.py's."""

import math

import numpy as np
import pytest

from tests.helpers import devices
from tests.helpers.expert_parallel import BATCH, DEVICES, LENGTH, LOADS, PARTS, PIPELINES, TOP, WIDTH, WINDOWS, sizes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    return devices.printed(devices.run("expert_parallel"))


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("windows", WINDOWS)
def test_every_row_is_computed_by_its_expert_whatever_the_load(run, windows, load):
    difference, _ = run["sent"][str(windows)][load]
    assert difference < 1e-5


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("windows", WINDOWS)
def test_every_choice_travels_once_each_way_whatever_the_load(run, windows, load):
    """Forward its token and weight there and the result back; backward those and the result's gradient there, and
    gradients of token and weight back. Rows that no expert serves stay where they are."""
    _, numbers = run["sent"][str(windows)][load]
    there, back = (WIDTH + 1) + (2 * WIDTH + 1), WIDTH + (WIDTH + 1)
    assert numbers == sizes(load).sum() * (there + back)


@pytest.mark.parametrize("load", LOADS)
def test_parts_of_the_inner_features_add_up(run, load):
    assert run["tensor"][load][0] < 1e-5


@pytest.mark.parametrize("name", PIPELINES)
def test_stages_tell_what_the_layers_of_one_device_tell(run, name):
    """Layers in their order, rows in theirs, and nothing of the bubble."""
    found, wanted = run["computed"][name], run["computed"]["alone"]
    for field, value in wanted.items():
        np.testing.assert_allclose(found[field], value, rtol=1e-5, err_msg=field)
    assert np.shape(wanted["loss_B"]) == (8, BATCH) and min(wanted["statistics/dropped"]) > 0
    assert np.unique(np.round(wanted["loss_B"], 6)).size == 8 * BATCH


def test_rows_are_sent_twice_forward_and_twice_backward(run):
    width, number = 16, 4  # of the model; bytes of a float32
    rows = TOP * math.prod((BATCH, LENGTH)) / DEVICES
    # Beside each row its weight goes there, and the weight's gradient back.
    assert run["exchanged"] == (4 * width + 2) * rows * number * (PARTS - 1) / PARTS


def test_experts_that_do_not_divide_are_refused(run):
    assert (
        "axis 'experts' has size 12, which must be divisible by the 8 devices of mesh axes ('expert',)"
        in run["refused"]
    )
    assert "change the size to a multiple of 8, or the mesh" in run["refused"]
