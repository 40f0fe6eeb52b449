"""Layers become segments."""

from llm_jax.models.families.decoder import segments
from llm_jax.models.stack import Segment
from tests.helpers import tiny

A = tiny.tiny_gpt2().segments[0].blocks[0]
B = tiny.tiny_llama().segments[0].blocks[0]


def test_the_shortest_group_is_repeated():
    assert segments((A,)) == (Segment((A,), 1),)
    assert segments((A, A, A)) == (Segment((A,), 3),)
    assert segments((A, B, A, B)) == (Segment((A, B), 2),)


def test_what_is_left_over_is_a_segment():
    assert segments((A, A, B, A, A, B, A, A)) == (Segment((A, A, B), 2), Segment((A, A), 1))


def test_where_no_group_repeats_runs_do():
    assert segments((A, A, B)) == (Segment((A,), 2), Segment((B,), 1))
    assert segments((A, B)) == (Segment((A,), 1), Segment((B,), 1))
