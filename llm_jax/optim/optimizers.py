"""Optimizers, by config type: each builds one optax transformation.

All have the same structure: gradients and parameters are cast to float32, the global gradient norm is clipped, the
optimizer computes a direction from the gradients, decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)
is added, and the sum is multiplied by minus the scheduled learning rate. State and updates are float32 for all
parameter dtypes. A layer of a stack is updated as if it were a separate parameter.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass
from llm_jax.optim.adafactor import scale_by_adafactor
from llm_jax.optim.decay_masks import DecayMask, DecayMatrices
from llm_jax.optim.matrix_layouts import layouts
from llm_jax.optim.muon import is_orthogonalised, scale_by_muon
from llm_jax.optim.schedules import Constant, Rate, Schedule


def _check_decays(**values: float) -> None:
    for name, value in values.items():
        check(0 <= value < 1, f"{name} is {value}: it must be at least 0 and less than 1")


def _check_adam(b1: float, b2: float, epsilon: float) -> None:
    _check_decays(b1=b1, b2=b2)
    check_positive(epsilon=epsilon)


def _check_optional(remedy: str, **values: float | None) -> None:
    for name, value in values.items():
        check(value is None or value > 0, f"{name} is {value}: it must be greater than 0, or None for {remedy}")


@configclass(kw_only=True)
class Optimizer(abc.ABC):
    """Base of the optimizers: rate, decay, clipping. To add an optimizer, derive a configclass from it."""

    peak_lr: float
    """Maximum learning rate of the schedule."""
    schedule: Schedule = Constant()
    """Learning rate over the run, relative to the peak."""
    weight_decay: float = 0.0
    """Fraction of a parameter that is subtracted per step, per unit of learning rate."""
    decay_mask: DecayMask = DecayMatrices()
    """Which parameters decay."""
    clip_norm: float | None = 1.0
    """Maximum global norm of the gradients, to which greater ones are scaled; None: no clipping."""

    def __post_init__(self):
        check_positive(peak_lr=self.peak_lr)
        check_not_negative(weight_decay=self.weight_decay)
        _check_optional("no clipping", clip_norm=self.clip_norm)

    def learning_rate(self, steps: int) -> Rate:
        """The learning rate of each step of a run of `steps` steps, counted from 0.

        Raises:
          ValueError: if the schedule does not fit into the run.
        """
        return self.schedule.build(self.peak_lr, steps)

    def build(self, steps: int, parameters: Any) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps; its `update` requires the parameters.

        Args:
          steps: number of steps of the whole run.
          parameters: nested dict of the parameters' shapes, boxed with their logical axes and roles
            (`boxed_parameters` of models/build.py).

        Raises:
          ValueError: if the schedule does not fit into the run, a parameter has no role, axes do not fit the
            parameters, or a pattern of the decay mask matches nothing.
        """
        tree = layouts(parameters)
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        decay = optax.add_decayed_weights(self.weight_decay, mask=self.decay_mask.select(tree))
        # Clipped before any moment sees the gradient. The decay is added to the direction and not to the gradient, so
        # that moments do not contain it: that is what makes it decoupled.
        return _in_float32(optax.chain(clip, self._step(tree, decay, self.learning_rate(steps))))

    def evaluation_params(self, opt_state: Any, params: Any) -> Any:
        """The parameters for evaluation, sampling and export: the trained ones, except for schedule-free optimizers."""
        return params

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        return optax.chain(self._direction(tree), decay, optax.scale_by_learning_rate(rate))

    @abc.abstractmethod
    def _direction(self, tree: Any) -> optax.GradientTransformation:
        """The transformation from clipped gradients to the ascent direction; `tree` is that of `MatrixLayout`s."""


@configclass(kw_only=True)
class AdamWConfig(Optimizer):
    """Adam with decoupled decay (Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter 2019)."""

    weight_decay: float = 0.1
    """Fraction of a parameter that is subtracted per step, per unit of learning rate."""
    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self):
        super().__post_init__()
        _check_adam(self.b1, self.b2, self.epsilon)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


@configclass(kw_only=True)
class AdafactorConfig(Optimizer):
    """Adam's second moment, factored into a row and a column (Shazeer and Stern 2018, arXiv:1804.04235).

    The matrix of each layer is factored separately, as [inputs, outputs]: [D, N, H] is D x NH.
    """

    exponent: float = 0.8
    """The decay of second moments is 1 - t ** -exponent at step t."""
    clip_threshold: float | None = 1.0
    """Maximum root mean square of the direction of one matrix; None: no maximum."""
    min_factored_size: int = 128
    """Second moments of matrices with fewer rows or columns are not factored."""
    scale_by_parameter: bool = True
    """Whether the learning rate is relative to the root mean square of each matrix."""
    momentum: float = 0.0
    """Decay of the mean of directions; with 0 there is none, and no memory for it."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(exponent=self.exponent, min_factored_size=self.min_factored_size)
        _check_optional("no clipping", clip_threshold=self.clip_threshold)
        _check_decays(momentum=self.momentum)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        scale = scale_by_adafactor(
            tree, self.exponent, self.clip_threshold, self.min_factored_size, self.scale_by_parameter
        )
        return optax.chain(scale, optax.ema(self.momentum, debias=False)) if self.momentum else scale


@configclass(kw_only=True)
class LionConfig(Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675).

    Its learning rate must be 3 to 10 times lower than that of AdamW, its weight decay higher by the same factor.
    """

    b1: float = 0.9
    """Weight of the momentum, against the gradient, in the direction."""
    b2: float = 0.99
    """Decay of the momentum."""

    def __post_init__(self):
        super().__post_init__()
        _check_decays(b1=self.b1, b2=self.b2)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        # sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g.
        return optax.scale_by_lion(self.b1, self.b2)


@configclass(kw_only=True)
class SGDConfig(Optimizer):
    """Stochastic gradient descent with momentum and decoupled weight decay."""

    momentum: float = 0.9
    """Decay of the sum of gradients; with 0 there is none, and no memory for it."""
    nesterov: bool = False
    """Whether to use Nesterov momentum (Sutskever et al. 2013)."""

    def __post_init__(self):
        super().__post_init__()
        _check_decays(momentum=self.momentum)
        check(
            self.momentum > 0 or not self.nesterov,
            "nesterov is True and momentum is 0: Nesterov requires momentum; set momentum, or nesterov=False",
        )

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@configclass(kw_only=True)
class AdamConfig:
    """Adam for the parameters to which Muon does not apply."""

    peak_lr: float | None = None
    """Maximum learning rate, with Muon's schedule; None: that of Muon."""
    b1: float = 0.9
    """Decay of the mean of gradients."""
    b2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""

    def __post_init__(self):
        _check_optional("Muon's own", peak_lr=self.peak_lr)
        _check_adam(self.b1, self.b2, self.epsilon)


@configclass(kw_only=True)
class MuonConfig(Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iteration (Jordan 2024, github.com/KellerJordan/Muon).

    It applies to parameters with the role of a matrix or an expert. The kernel of each layer is treated as the matrix
    [inputs, outputs]: [D, N, H] is D x NH, [N, H, D] is NH x D. All other parameters are optimized by Adam, with the
    same schedule and decay mask: embeddings, tables, routers, readouts, convolutions and vectors.
    """

    weight_decay: float = 0.1
    """Fraction of a parameter that is subtracted per step, per unit of its learning rate."""
    momentum: float = 0.95
    """Decay of the mean of gradients."""
    nesterov: bool = True
    """Whether to use Nesterov momentum."""
    iterations: int = 5
    """Number of Newton-Schulz iterations."""
    matched_rms: float | None = 0.2
    """Root mean square of the update of a full-rank matrix of any shape, per unit of learning rate. 0.2 matches AdamW,
    so that its learning rate and decay can be reused (Liu et al. 2025, arXiv:2502.16982). None: Jordan's scale, an
    orthogonal matrix times sqrt(max(1, outputs / inputs)), which requires a learning rate near 0.02 and a separate rate
    for Adam."""
    adam: AdamConfig = AdamConfig()
    """Optimizer of the parameters that are not orthogonalised."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(iterations=self.iterations)
        _check_decays(momentum=self.momentum)
        _check_optional("Jordan's scale", matched_rms=self.matched_rms)

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        adam_share = 1.0 if self.adam.peak_lr is None else self.adam.peak_lr / self.peak_lr
        shares = optax.partition({"muon": optax.identity(), "adam": optax.scale(adam_share)}, _muon_or_adam(tree))
        # The shares follow the decay, so that a parameter decays in proportion to the rate of its own group.
        return optax.chain(self._direction(tree), decay, shares, optax.scale_by_learning_rate(rate))

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        # Muon and Adam see only their own parameters; optax.partition masks the others.
        muon = scale_by_muon(tree, self.momentum, self.nesterov, self.iterations, self.matched_rms)
        adam = optax.scale_by_adam(self.adam.b1, self.adam.b2, self.adam.epsilon)
        return optax.partition({"muon": muon, "adam": adam}, _muon_or_adam(tree))


@configclass(kw_only=True)
class ScheduleFreeAdamWConfig(Optimizer):
    """AdamW that averages iterates instead of decaying the learning rate (Defazio et al. 2024, arXiv:2405.15682).

    Gradients are computed at y, an interpolation; the average x must be used for evaluation (`evaluation_params`).
    Parameters must be float32, because the average is recovered from them. `schedule` should be a warm-up followed by a
    constant rate.
    """

    weight_decay: float = 0.1
    """Fraction of a parameter that is subtracted per step, per unit of learning rate."""
    b1: float = 0.9
    """Weight of the average, relative to the fast iterate, in the point where gradients are computed."""
    b2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    rate_power: float = 2.0
    """The weight of an iterate in the average is the maximum learning rate so far to this power."""

    def __post_init__(self):
        super().__post_init__()
        _check_adam(self.b1, self.b2, self.epsilon)
        check(
            self.b1 > 0, f"b1 is {self.b1}: it must be greater than 0, since the average is recovered by division by b1"
        )
        check_not_negative(rate_power=self.rate_power)

    def evaluation_params(self, opt_state: Any, params: Any) -> Any:
        """The average x of the iterates, in the parameters' dtype.

        Raises:
          ValueError: if the state is not of this optimizer.
        """
        is_ours = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
        found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
        check(
            len(found) == 1,
            f"the optimizer state has {len(found)} schedule-free states: one is required, that of "
            "ScheduleFreeAdamWConfig",
        )
        average = optax.contrib.schedule_free_eval_params(found[0], optax.tree.cast(params, jnp.float32))
        return optax.tree.cast_like(average, params)

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        base = optax.chain(self._direction(tree), decay, optax.scale_by_learning_rate(rate))
        # optax counts schedule-free steps from 1, whereas the base optimizer counts from 0. The weights of the average
        # must be computed from the rates that were used.
        return optax.contrib.schedule_free(base, lambda count: rate(jnp.asarray(count) - 1), self.b1, self.rate_power)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        # Adam without a mean of gradients: the interpolation between the iterates takes its part.
        return optax.scale_by_rms(self.b2, self.epsilon, eps_in_sqrt=False, bias_correction=True)


def _in_float32(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    def init(params: Any) -> Any:
        return inner.init(optax.tree.cast(params, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        grads, params = optax.tree.cast(updates, jnp.float32), optax.tree.cast(params, jnp.float32)
        return inner.update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _muon_or_adam(tree: Any) -> Any:
    return jax.tree.map(lambda layout: "muon" if is_orthogonalised(layout) else "adam", tree)
