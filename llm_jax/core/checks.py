"""Checks of config values. Each raises ValueError with the value, the rule and the remedy."""

import difflib
import math
from collections.abc import Iterable
from typing import Any, TypeVar

Value = TypeVar("Value")


def check(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition` holds. The message must give value, rule and remedy."""
    if not condition:
        raise ValueError(message)


def given(value: Value | None, message: str) -> Value:
    """`value`. Raises ValueError with `message` if it is None."""
    if value is None:
        raise ValueError(message)
    return value


def shortened(value: Any, most: int = 60) -> str:
    """repr of a value, truncated to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def check_positive(**values: float) -> None:
    """Checks that every named value is greater than zero."""
    for name, value in values.items():
        check(value > 0, f"{name} is {value}: it must be greater than 0")


def check_positive_if_given(**values: float | None) -> None:
    """Checks that every named value is None or greater than zero."""
    check_positive(**{name: value for name, value in values.items() if value is not None})


def check_not_negative(**values: float) -> None:
    """Checks that every named value is zero or greater."""
    for name, value in values.items():
        check(value >= 0, f"{name} is {value}: it must be 0 or greater")


def check_fraction(**values: float) -> None:
    """Checks that every named value is in [0, 1]."""
    for name, value in values.items():
        check(0 <= value <= 1, f"{name} is {value}: it must lie between 0 and 1")


def check_divides(divisor: int, number: int, divisor_name: str, number_name: str) -> None:
    """Checks that `divisor` divides `number`. The message gives the nearest divisors."""
    if divisor < 1 or number % divisor:
        near = sorted(_divisors(number), key=lambda d: abs(d - divisor))[:4]
        raise ValueError(
            f"{divisor_name} is {divisor} and {number_name} is {number}: {divisor_name} must divide {number_name}; "
            f"set {divisor_name} to one of {sorted(near)} or change {number_name}"
        )


def _divisors(number: int) -> set[int]:
    """All divisors of `number`. For very large numbers only those below the search limit, and their cofactors."""
    small = [d for d in range(1, min(math.isqrt(max(number, 0)), 10**6) + 1) if number % d == 0]
    return {*small, *(number // d for d in small)}


def check_seed(**values: int) -> None:
    """Checks that every named value is a seed in [0, 2^32), where all seeds differ for both jax and numpy."""
    for name, value in values.items():
        check(0 <= value < 2**32, f"{name} is {value}: a seed must be at least 0 and less than 2^32 = 4294967296")


def check_one_of(name: str, value: str | int, choices: Iterable[str | int]) -> None:
    """Checks that `value` is among `choices`. The message suggests a similar choice."""
    choices = list(choices)
    if value not in choices:
        near = did_you_mean(str(value), map(str, choices))
        raise ValueError(f"{name} is {value!r}: it must be one of {choices}{near}")


def did_you_mean(word: str, known: Iterable[str], closeness: float = 0.6) -> str:
    """'; did you mean ...?' for the most similar known word, or '' if none has a similarity of at least `closeness`."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=closeness)
    return f"; did you mean {match[0]!r}?" if match else ""
