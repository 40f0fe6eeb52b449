"""Attention over divided rows gives what it gives on one device, whichever way the shards are exchanged. The program
itself is tests/helpers/divided_rows.py."""

import pytest

from tests.helpers import devices
from tests.helpers.divided_rows import CASES, EXCHANGES, MESHES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def differences():
    return devices.printed(devices.run("divided_rows", "exchanges"))


def test_output_and_gradients_are_those_of_whole_rows(differences):
    assert all(difference < 1e-5 for difference in differences.values()), differences


def test_every_case_every_exchange_and_every_mesh_are_compared(differences):
    compared = [tuple(title.split("; ")) for title in differences]
    assert {(name, case) for name, _, case in compared} == {(name, case) for name in EXCHANGES for case in CASES}
    assert {(name, mesh) for name, mesh, _ in compared} == {(name, mesh) for name in EXCHANGES for mesh in MESHES}
