"""Every check lets good values through and names value, rule and remedy of bad ones."""

import math

import pytest

from llm_jax.core import checks


def test_good_values_pass():
    checks.check(True, "never seen")
    checks.check_positive(a=1, b=1e-9)
    checks.check_not_negative(a=0, b=3)
    checks.check_fraction(a=0, b=1, c=0.5)
    checks.check_divides(4, 12, "heads", "width")
    checks.check_one_of("kind", "bpe", ("bpe", "unigram"))


def test_check_raises_the_message_as_given():
    with pytest.raises(ValueError, match="^width is 3: make it even$"):
        checks.check(False, "width is 3: make it even")


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan])
def test_positive(value):
    with pytest.raises(ValueError, match=f"^second is {value}: it must be greater than 0"):
        checks.check_positive(first=1, second=value)


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan])
def test_not_negative(value):
    with pytest.raises(ValueError, match=f"^decay is {value}: it must be 0 or greater"):
        checks.check_not_negative(decay=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_fraction(value):
    with pytest.raises(ValueError, match=f"^dropout is {value}: it must lie between 0 and 1"):
        checks.check_fraction(dropout=value)


@pytest.mark.parametrize("divisor", [5, 7, 13, 0, -2])
def test_divides_offers_only_numbers_that_do(divisor):
    with pytest.raises(ValueError, match=f"^heads is {divisor} and width is 12: heads must divide width") as caught:
        checks.check_divides(divisor, 12, "heads", "width")
    offered = [int(n) for n in str(caught.value).split("[")[1].split("]")[0].split(",")]
    assert offered and all(12 % n == 0 for n in offered)
    nearest = min((d for d in range(1, 13) if 12 % d == 0), key=lambda d: abs(d - divisor))
    assert nearest in offered


def test_one_of_lists_the_choices_and_suggests_a_near_miss():
    with pytest.raises(
        ValueError, match=r"kind is 'unigrm': it must be one of \['bpe', 'unigram'\]; did you mean 'unig"
    ):
        checks.check_one_of("kind", "unigrm", ("bpe", "unigram"))
    with pytest.raises(ValueError, match=r"\]$"):
        checks.check_one_of("kind", "zzz", ("bpe", "unigram"))


def test_did_you_mean_is_silent_without_a_near_word():
    assert checks.did_you_mean("peak_lr", ["peak_learning_rate", "peak_rl"]) == "; did you mean 'peak_rl'?"
    assert checks.did_you_mean("zzz", ["peak_lr"]) == ""
    assert checks.did_you_mean("zzz", []) == ""


@pytest.mark.parametrize("value", [-1, 2**32])
def test_seeds_are_those_that_generators_tell_apart(value):
    checks.check_seed(seed=0, other=2**32 - 1)
    with pytest.raises(ValueError, match=f"^seed is {value}: a seed must be at least 0 and less than"):
        checks.check_seed(seed=value)


def test_divisors_of_a_number_beyond_any_model_are_not_searched_for_one_by_one():
    with pytest.raises(ValueError, match=r"heads must divide width; set heads to one of \[1, 2, 4, 5\]"):
        checks.check_divides(3, 10**18, "heads", "width")
