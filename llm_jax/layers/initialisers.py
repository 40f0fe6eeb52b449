"""Initialisers of parameters: each distribution is a config type.

Fan-in and fan-out are the numbers of input and output features of a matrix. For a table of vectors they are the width
and the number of rows.
"""

import abc
import math
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax

from llm_jax.core.checks import check, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass
from llm_jax.layers.roles import ParameterBox, Role


@configclass
class Init(abc.ABC):
    """A distribution of initial values. To add a distribution, derive a configclass from it."""

    @abc.abstractmethod
    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation of the values, before truncation."""

    @abc.abstractmethod
    def draw(self, fan_in: int, fan_out: int) -> nn.initializers.Initializer:
        """Flax initialiser for a parameter of this fan-in and fan-out."""

    @property
    @abc.abstractmethod
    def formula(self) -> str:
        """The distribution as text, such as 'N(0, 0.02)'."""


class _Gaussian(Init):
    """Base of Gaussian initialisers."""

    @property
    def cutoff(self) -> float | None:
        """Truncation in standard deviations, by redrawing; None: no truncation."""
        return None

    def draw(self, fan_in: int, fan_out: int) -> nn.initializers.Initializer:
        """Flax initialiser for a parameter of this fan-in and fan-out."""
        stddev, cut = self.stddev_of(fan_in, fan_out), self.cutoff
        if cut is None:
            return nn.initializers.normal(stddev)
        # Flax's own initialiser divides by the standard deviation after truncation; TensorFlow's and PyTorch's do not.
        return lambda key, shape, dtype: jax.random.truncated_normal(key, -cut, cut, shape, dtype) * stddev


class _Uniform(Init):
    """Base of uniform initialisers around zero."""

    def draw(self, fan_in: int, fan_out: int) -> nn.initializers.Initializer:
        """Flax initialiser for a parameter of this fan-in and fan-out."""
        # A uniform distribution on [-limit, limit] has the standard deviation limit / sqrt(3).
        limit = self.stddev_of(fan_in, fan_out) * math.sqrt(3)
        return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


@configclass
class Normal(_Gaussian):
    """Gaussian with a fixed standard deviation."""

    stddev: float = 0.02
    cut: float | None = None
    """Truncation in standard deviations, by redrawing, as in `truncated_normal` of TensorFlow and `trunc_normal_` of
    PyTorch. Truncation reduces the standard deviation: by 12% for a cut of 2."""

    def __post_init__(self):
        check_positive(stddev=self.stddev)
        check_positive_if_given(cut=self.cut)

    @property
    def cutoff(self) -> float | None:
        return self.cut

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation before truncation."""
        return self.stddev

    @property
    def formula(self) -> str:
        return f"N(0, {self.stddev:.4g}){_cut_text(self.cut)}"


@configclass
class FanIn(_Gaussian):
    """Gaussian of variance gain^2 / fan_in (LeCun et al. 1998)."""

    gain: float = 1.0
    cut: float | None = None
    """As in `Normal`."""

    def __post_init__(self):
        check_positive(gain=self.gain)
        check_positive_if_given(cut=self.cut)

    @property
    def cutoff(self) -> float | None:
        return self.cut

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation before truncation."""
        return self.gain / math.sqrt(fan_in)

    @property
    def formula(self) -> str:
        return f"N(0, {self.gain:.4g} / sqrt(fan-in)){_cut_text(self.cut)}"


@configclass
class Glorot(_Gaussian):
    """Gaussian of variance 2 gain^2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12)."""

    gain: float = 1.0

    def __post_init__(self):
        check_positive(gain=self.gain)

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation."""
        return self.gain * math.sqrt(2 / (fan_in + fan_out))

    @property
    def formula(self) -> str:
        return f"N(0, {self.gain:.4g} / sqrt(mean of fan-in and fan-out))"


@configclass
class Uniform(_Uniform):
    """Uniform between -limit and limit."""

    limit: float

    def __post_init__(self):
        check_positive(limit=self.limit)

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation."""
        return self.limit / math.sqrt(3)

    @property
    def formula(self) -> str:
        return f"uniform within {self.limit:.4g}"


@configclass
class UniformFanIn(_Uniform):
    """Uniform around zero of variance gain^2 / fan_in. With a gain of 1 / sqrt(3) it is the default of PyTorch's Linear
    and Conv1d, uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in)."""

    gain: float = 1.0

    def __post_init__(self):
        check_positive(gain=self.gain)

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation."""
        return self.gain / math.sqrt(fan_in)

    @property
    def formula(self) -> str:
        return f"uniform within {self.gain * math.sqrt(3):.4g} / sqrt(fan-in)"


@configclass
class UniformGlorot(_Uniform):
    """Uniform around zero of variance 2 gain^2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16)."""

    gain: float = 1.0

    def __post_init__(self):
        check_positive(gain=self.gain)

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Standard deviation."""
        return self.gain * math.sqrt(2 / (fan_in + fan_out))

    @property
    def formula(self) -> str:
        return f"uniform within {self.gain * math.sqrt(3):.4g} / sqrt(mean of fan-in and fan-out)"


@configclass
class Zero(Init):
    """Zeros."""

    def stddev_of(self, fan_in: int, fan_out: int) -> float:
        """Zero."""
        return 0.0

    def draw(self, fan_in: int, fan_out: int) -> nn.initializers.Initializer:
        """Flax initialiser of zeros."""
        return nn.initializers.zeros_init()

    @property
    def formula(self) -> str:
        return "0"


TORCH_DEFAULT = UniformFanIn(1 / math.sqrt(3))
"""PyTorch's default for kernels and biases of Linear and Conv1d; the fan-in of a bias is that of its kernel."""


def annotated(init: nn.initializers.Initializer, logical_axes: tuple[str, ...], role: Role) -> Callable[..., jax.Array]:
    """`init` with the logical axes (sharding/axes.py) and the role (roles.py) of a parameter, for `Module.param`.

    The initialiser returns a box with both; flax unboxes the parameter wherever a module reads it.

    Raises:
      ValueError: if `role` is not one of `Role`.
    """
    check(role in list(Role), f"role is {role!r}: it must be one of Role, {', '.join(Role)}")
    return cast("Callable[..., jax.Array]", lambda *drawn: ParameterBox(init(*drawn), logical_axes, role=Role(role)))


def _cut_text(cut: float | None) -> str:
    return "" if cut is None else f" cut at {cut:.4g} deviations"
