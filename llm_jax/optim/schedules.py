"""Learning rate schedules. Steps are counted from 0; the peak rate is a field of the optimizer.

Warm-up is that of nanoGPT: rate(i) = peak * (i + 1) / (warmup_steps + 1), so that no step has a rate of zero and step
`warmup_steps` is the first at the peak. A decay that ends at step e reaches its final rate exactly at e. In a run of e
steps, whose last step is e - 1, this would be the rate of the next step.
"""

import abc
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from llm_jax.core.checks import check, check_fraction, check_not_negative, check_one_of, check_positive
from llm_jax.core.configclass import configclass

Rate = Callable[[ArrayLike], jax.Array]
"""From the number of steps so far, which may be traced, to the learning rate of the next step, float32 []."""


@configclass
class Schedule(abc.ABC):
    """The learning rate over a run. To add a schedule, derive a configclass from it."""

    warmup_steps: int = 0
    """Number of steps before the first one at the peak rate."""

    def __post_init__(self):
        check_not_negative(warmup_steps=self.warmup_steps)

    @abc.abstractmethod
    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps, with maximum `peak`.

        Raises:
          ValueError: if the schedule does not fit into the run.
        """


@configclass
class Constant(Schedule):
    """Warm-up, then the peak."""

    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps."""
        _check_run(peak, steps)
        return _warmed(peak, self.warmup_steps, lambda step: jnp.ones_like(step))


@configclass
class Cosine(Schedule):
    """Warm-up, half a cosine down to the final rate, then the final rate (Loshchilov and Hutter 2017,
    arXiv:1608.03983)."""

    final_fraction: float = 0.1
    """Final rate as a fraction of the peak."""
    decay_steps: int | None = None
    """Step, counted from the start of the run, at which the final rate is reached; None: the end of the run."""

    def __post_init__(self):
        super().__post_init__()
        _check_decay(self.warmup_steps, self.final_fraction, self.decay_steps)

    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps. ValueError if the run ends before the decay begins."""
        progress = _progress(peak, steps, self.warmup_steps, self.decay_steps)
        shape = lambda step: 0.5 * (1 + jnp.cos(jnp.pi * progress(step)))  # noqa: E731
        return _warmed(peak, self.warmup_steps, lambda step: _between(self.final_fraction, shape(step)))


@configclass
class Linear(Schedule):
    """Warm-up, linear decay to the final rate, then the final rate."""

    final_fraction: float = 0.0
    """Final rate as a fraction of the peak."""
    decay_steps: int | None = None
    """Step, counted from the start of the run, at which the final rate is reached; None: the end of the run."""

    def __post_init__(self):
        super().__post_init__()
        _check_decay(self.warmup_steps, self.final_fraction, self.decay_steps)

    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps. ValueError if the run ends before the decay begins."""
        progress = _progress(peak, steps, self.warmup_steps, self.decay_steps)
        return _warmed(peak, self.warmup_steps, lambda step: _between(self.final_fraction, 1 - progress(step)))


@configclass
class InverseSqrt(Schedule):
    """Warm-up, then peak * sqrt((warmup_steps + 1) / (step + 1)) (Vaswani et al. 2017, arXiv:1706.03762, eq. 3)."""

    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps."""
        _check_run(peak, steps)
        return _warmed(peak, self.warmup_steps, lambda step: jnp.sqrt((self.warmup_steps + 1) / (step + 1)))


@configclass
class WSD(Schedule):
    """Warm-up, stable, decay: the peak until the last part of the run, then decay to the final rate.

    Hu et al. 2024, arXiv:2404.06395; the square-root shape is from Hägele et al. 2024, arXiv:2405.18392.
    """

    decay_fraction: float = 0.2
    """Fraction of the run, at its end, in which the rate decays."""
    final_fraction: float = 0.0
    """Final rate as a fraction of the peak."""
    shape: Literal["linear", "sqrt"] = "sqrt"
    """Shape of the decay after a fraction p of its steps: 1 - p, or 1 - sqrt(p), of the difference to the final
    rate."""

    def __post_init__(self):
        super().__post_init__()
        _check_decay(self.warmup_steps, self.final_fraction, None)
        check(
            0 < self.decay_fraction <= 1,
            f"decay_fraction is {self.decay_fraction}: it must be greater than 0 and at most 1; for no decay use "
            "Constant",
        )
        check_one_of("shape", self.shape, ("linear", "sqrt"))

    def build(self, peak: float, steps: int) -> Rate:
        """The rate of each step of a run of `steps` steps. Raises ValueError if warm-up and decay overlap."""
        _check_run(peak, steps)
        decay = max(1, round(self.decay_fraction * steps))
        check(
            self.warmup_steps <= steps - decay,
            f"warmup_steps is {self.warmup_steps} and the last {decay} of {steps} steps decay: they must not overlap; "
            "lower warmup_steps or decay_fraction, or increase the run's steps",
        )

        def after_warmup(step: jax.Array) -> jax.Array:
            progress = jnp.clip((step - (steps - decay)) / decay, 0, 1)
            return _between(self.final_fraction, 1 - (progress if self.shape == "linear" else jnp.sqrt(progress)))

        return _warmed(peak, self.warmup_steps, after_warmup)


def _warmed(peak: float, warmup_steps: int, after_warmup: Callable[[jax.Array], jax.Array]) -> Rate:
    def rate(updates: ArrayLike) -> jax.Array:
        # float32 represents steps exactly up to 2^24.
        step = jnp.asarray(updates, jnp.float32)
        return peak * jnp.where(step < warmup_steps, (step + 1) / (warmup_steps + 1), after_warmup(step))

    return rate


def _progress(peak: float, steps: int, warmup_steps: int, decay_steps: int | None) -> Callable[[jax.Array], jax.Array]:
    """Progress of the decay at a step, from 0 to 1."""
    _check_run(peak, steps)
    end = steps if decay_steps is None else decay_steps
    check(
        end > warmup_steps,
        f"warmup_steps is {warmup_steps} and the run has {steps} steps: the decay must start before the run ends; "
        "lower warmup_steps, increase the run's steps, or set decay_steps",
    )
    return lambda step: jnp.clip((step - warmup_steps) / (end - warmup_steps), 0, 1)


def _between(final: float, share: jax.Array) -> jax.Array:
    """Interpolation from `final` at share 0 to 1 at share 1; both ends are exact."""
    return final * (1 - share) + share


def _check_decay(warmup_steps: int, final_fraction: float, decay_steps: int | None) -> None:
    check_fraction(final_fraction=final_fraction)
    check(
        decay_steps is None or decay_steps > warmup_steps,
        f"decay_steps is {decay_steps} and warmup_steps is {warmup_steps}: decay_steps counts from the start of the "
        "run and must be greater than warmup_steps",
    )


def _check_run(peak: float, steps: int) -> None:
    check_positive(peak=peak, steps=steps)
