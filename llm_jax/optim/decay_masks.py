"""Masks of weight decay: which parameters decay."""

import abc
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from llm_jax.core.checks import check
from llm_jax.core.configclass import configclass
from llm_jax.optim.matrix_layouts import MatrixLayout


@configclass
class DecayMask(abc.ABC):
    """Which parameters decay. To add a rule, derive a configclass from it."""

    @abc.abstractmethod
    def select(self, layouts: Any) -> Any:
        """The tree of bools, True where a parameter decays.

        Args:
          layouts: the tree of the parameters' `MatrixLayout`s.
        """


@configclass
class DecayMatrices(DecayMask):
    """Parameters with the role of a matrix or a table decay. Biases, norm scales, rates of recurrences and other
    vectors do not (GPT-2, LLaMA, nanoGPT)."""

    exclude: tuple[str, ...] = ()
    """Regular expressions, searched for in parameter paths; matching matrices do not decay."""

    def __post_init__(self):
        _check_patterns("exclude", self.exclude)

    def select(self, layouts: Any) -> Any:
        """The tree of bools, True where a parameter decays. Raises ValueError if a pattern excludes nothing."""
        return _without(self.exclude, layouts, lambda layout: layout.is_matrix)


@configclass
class DecayAll(DecayMask):
    """Every parameter decays."""

    exclude: tuple[str, ...] = ()
    """Regular expressions, searched for in parameter paths; matching parameters do not decay."""

    def __post_init__(self):
        _check_patterns("exclude", self.exclude)

    def select(self, layouts: Any) -> Any:
        """The tree of bools, True where a parameter decays. Raises ValueError if a pattern excludes nothing."""
        return _without(self.exclude, layouts, lambda layout: True)


@configclass
class DecayMatching(DecayMask):
    """Only parameters whose path matches one of the patterns decay."""

    patterns: tuple[str, ...]
    """Regular expressions, searched for in parameter paths such as 'stack/0/mixer/query/kernel'."""

    def __post_init__(self):
        check(
            len(self.patterns) > 0,
            "patterns is empty: add a pattern of the parameters that decay, or set weight_decay to 0",
        )
        _check_patterns("patterns", self.patterns)

    def select(self, layouts: Any) -> Any:
        """The tree of bools, True where a parameter decays. Raises ValueError if a pattern matches nothing."""
        _check_used(self.patterns, jax.tree.leaves(layouts))
        return jax.tree.map(lambda layout: _matches(self.patterns, layout), layouts)


def _without(exclude: tuple[str, ...], layouts: Any, decays: Callable[[MatrixLayout], bool]) -> Any:
    _check_used(exclude, [layout for layout in jax.tree.leaves(layouts) if decays(layout)])
    return jax.tree.map(lambda layout: decays(layout) and not _matches(exclude, layout), layouts)


def _matches(patterns: tuple[str, ...], layout: MatrixLayout) -> bool:
    return any(re.search(pattern, layout.path) for pattern in patterns)


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    check(isinstance(patterns, tuple), f"{name} is {patterns!r}: it must be a tuple of regular expressions")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{name} has {pattern!r}, which is not a regular expression: {error}; correct it"
            ) from None


def _check_used(patterns: tuple[str, ...], candidates: Sequence[MatrixLayout]) -> None:
    for pattern in patterns:
        if not any(_matches((pattern,), layout) for layout in candidates):
            shown = ", ".join(layout.path for layout in candidates[:8]) + (", ..." if len(candidates) > 8 else "")
            raise ValueError(
                f"decay mask: {pattern!r} matches none of the {len(candidates)} parameters that may decay ({shown}); "
                "correct it or remove it"
            )
