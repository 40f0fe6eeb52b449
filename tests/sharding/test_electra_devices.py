"""A generator and a discriminator train on eight devices as on one, with the same samples. The program itself is
tests/helpers/electra_devices.py."""

import numpy as np
import pytest

from tests.helpers import devices
from tests.helpers.electra_devices import PLACES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    return devices.printed(devices.run("electra_devices"))


@pytest.mark.parametrize("place", PLACES[1:])
def test_losses_samples_and_weights_are_those_of_one_device(run, place):
    found, one = run[place], run["one"]
    assert found["shards"] > one["shards"] == 1
    assert one["metrics"][1]["generator_loss"] < one["metrics"][0]["generator_loss"]
    for step in range(2):
        assert found["metrics"][step]["replaced"] == one["metrics"][step]["replaced"] > 0.1
        for name, value in one["metrics"][step].items():
            np.testing.assert_allclose(found["metrics"][step][name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["sums"], one["sums"], rtol=1e-4)
