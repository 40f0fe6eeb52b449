"""What a ring computes, sends and keeps. That it is attention is asked in test_exchange.py. The program itself is
tests/helpers/divided_rows.py: eight devices hold rows of 32 tokens, their blocks are of two."""

import pytest

from tests.helpers import devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts():
    return devices.printed(devices.run("divided_rows", "rings", fused=True))


def test_causal_work_is_about_half_and_the_same_for_every_device(facts):
    # Sixteen blocks: of 256 meetings 136 are not hidden.
    assert facts["visits"]["balanced"] == 8 * [17]
    # Device i holds blocks 2 i and 2 i + 1: it meets the four of every device before it, and three of its own four.
    assert facts["visits"]["contiguous"] == [4 * device + 3 for device in range(8)]


def test_a_window_meets_only_what_it_reaches(facts):
    # A query sees itself and two before it: of the device before, the last block alone.
    assert facts["visits"]["window"] == [3] + 7 * [4]


def test_a_ring_gathers_nothing_and_a_window_stops_it_early(facts):
    found = facts["collectives"]
    # Keys and values are passed on seven times, forward and backward; gradients also home.
    assert found["all"] == {"collective-permute": 2 * (7 + 7 + 8)}
    # A window that reaches one shard back: keys and values once, which serves both passes; their gradients behind
    # them, and home.
    assert found["window"] == {"collective-permute": 2 * (1 + 1 + 1)}


def test_a_balanced_ring_trades_everything_once(facts):
    found = facts["collectives"]
    # Two shards of each. Traded are queries, keys, values and output; the output's gradient and its product with the
    # output; the gradients of queries, keys and values.
    assert found["balanced"] == {"collective-permute": 2 * (2 * (7 + 7 + 8) + 4 + 2 + 3)}


def test_a_policy_that_keeps_the_context_spares_a_round(facts):
    found = {
        name: kinds["collective-permute"] for name, kinds in facts["collectives"].items() if "permute" in str(kinds)
    }
    assert found["context kept"] == found["all"]
    assert found["nothing kept"] == found["all"] + 2 * 7


def test_all_to_all_is_all_to_all(facts):
    # Queries, keys, values and output, forward and backward; with more devices than key/value heads too.
    for name in ("all to all", "all to all, copies"):
        assert facts["collectives"][name] == {"all-to-all": 8}


def test_memory_grows_with_the_length_and_not_with_its_square(facts):
    short, long = facts["temporary"]
    assert long <= 2.2 * short


def test_what_does_not_divide_is_refused(facts):
    said = facts["messages"]
    assert "a sequence has 36 tokens and is divided over 8 devices: set the length to a multiple of 8" in said["shards"]
    assert "a sequence has 40 tokens" in said["trade"] and "multiple of 16, or Ring.balanced to False" in said["trade"]
    assert said["unbalanced"] == said["no rows"] == "none"
    assert "shape (3,) has size 3 along 'batch', which must be divisible by 4 devices" in said["rows"]
    assert "there are 4 heads" in said["heads"] and "must be a multiple of 8" in said["heads"]
