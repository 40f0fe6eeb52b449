import jax
import pytest

from tests.golden import first_step, records


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the figures are those of the CPU")
def test_the_first_updates_are_what_they_were():
    # Versions of jax differ in the last digits; a change of the mathematics is far larger than this tolerance.
    expected, found = first_step.read(), first_step.measure()
    assert len(expected) == first_step.UPDATES
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.1
    for update, (old, new) in enumerate(zip(expected, found, strict=True), 1):
        assert new == pytest.approx(old, rel=1e-4), f"update {update}; if meant: {records.COMMAND}"
