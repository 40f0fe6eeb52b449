"""Whole models whose rows lie on several devices do what they do on one. The program itself is
tests/helpers/divided_models.py."""

import pytest

from tests.helpers import devices
from tests.helpers.divided_models import FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.full(reason="tests/parity/test_matrix.py trains with divided rows")]


@pytest.fixture(scope="module")
def facts():
    return devices.printed(devices.run("divided_models"))


def test_scores_and_gradients_are_those_of_one_device(facts):
    assert facts["families"].keys() == FAMILIES.keys()
    for family, layouts in facts["families"].items():
        for layout, difference in layouts.items():
            assert difference["loss"] < 1e-5 and difference["gradient"] < 1e-4, (family, layout)


def test_a_cache_serves_rows_that_would_be_divided(facts):
    alone, *others = facts["written"]
    assert len({tuple(row) for row in alone}) == 3
    assert others == 2 * [alone]


def test_a_row_that_does_not_divide_is_refused(facts):
    assert (
        "inputs have 10 tokens and sequences are divided over 4 devices: set the length to a multiple of 4"
        in facts["refused"]
    )
