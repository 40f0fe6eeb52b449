"""Models that predict several tokens train on eight devices as on one. The program itself is
tests/helpers/multi_token_devices.py."""

import numpy as np
import pytest

from tests.helpers import devices
from tests.helpers.multi_token_devices import PLACES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    return devices.printed(devices.run("multi_token_devices"))


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in PLACES for place in PLACES[name][1:]])
def test_losses_and_weights_are_those_of_one_device(run, name, place):
    found, one = run[name][place], run[name]["one"]
    assert found["shards"] > one["shards"] == 1
    assert {"loss", "loss_2", "loss_3"} <= one["metrics"][0].keys()
    assert one["metrics"][1]["loss_3"] < one["metrics"][0]["loss_3"] - 0.01
    for step in range(2):
        for metric, value in one["metrics"][step].items():
            np.testing.assert_allclose(found["metrics"][step][metric], value, rtol=1e-6, err_msg=metric)
    np.testing.assert_allclose(found["sums"], one["sums"], rtol=1e-5)
