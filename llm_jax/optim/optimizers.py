"""Optimizers, by config type: each builds one optax transformation.

All share one frame: gradients and parameters are taken to float32, the global gradient norm is clipped, the optimizer
turns gradients into a direction, decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101) is added, and
the sum is multiplied by minus the scheduled learning rate. State and updates are float32 whatever the parameters are.
A layer of a stack is updated just as if it were a parameter of its own.
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
    """What every optimizer has: rate, decay, clipping. Derive a configclass from it to use an optimizer of your own."""

    peak_lr: float
    """Highest learning rate; the schedule says when it holds."""
    schedule: Schedule = Constant()
    """Learning rate over the run, relative to the peak."""
    weight_decay: float = 0.0
    """Share of a parameter taken away per update, per unit of learning rate."""
    decay_mask: DecayMask = DecayMatrices()
    """Which parameters decay."""
    clip_norm: float | None = 1.0
    """Gradients whose global norm is greater are scaled down to it; None: never."""

    def __post_init__(self):
        check_positive(peak_lr=self.peak_lr)
        check_not_negative(weight_decay=self.weight_decay)
        _check_optional("no clipping", clip_norm=self.clip_norm)

    def learning_rate(self, steps: int) -> Rate:
        """The rate of each step of a run of `steps` updates, step 0 being the first.

        Raises:
          ValueError: for a schedule that does not fit into the run.
        """
        return self.schedule.build(self.peak_lr, steps)

    def build(self, steps: int, parameters: Any) -> optax.GradientTransformation:
        """The transformation for a run of `steps` updates; its `update` needs the parameters.

        Args:
          steps: updates in the whole run.
          parameters: nested dict of the parameters' shapes, boxed with their logical axes and roles
            (`boxed_parameters` of models/build.py).

        Raises:
          ValueError: for a schedule that does not fit into the run, a parameter without a role, axes that do not fit
            the parameters, or a pattern of the decay mask that matches nothing.
        """
        tree = layouts(parameters)
        clip = optax.identity() if self.clip_norm is None else optax.clip_by_global_norm(self.clip_norm)
        decay = optax.add_decayed_weights(self.weight_decay, mask=self.decay_mask.select(tree))
        return _in_float32(optax.chain(clip, self._step(tree, decay, self.learning_rate(steps))))

    def evaluation_params(self, opt_state: Any, params: Any) -> Any:
        """The parameters to evaluate, sample and publish: those trained, for all but schedule-free optimizers."""
        return params

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        return optax.chain(self._direction(tree), decay, optax.scale_by_learning_rate(rate))

    @abc.abstractmethod
    def _direction(self, tree: Any) -> optax.GradientTransformation:
        """From clipped gradients to the ascent direction; `tree` holds the parameters' Layouts."""


@configclass(kw_only=True)
class AdamWConfig(Optimizer):
    """Adam with decoupled decay (Kingma and Ba 2015, arXiv:1412.6980; Loshchilov and Hutter 2019)."""

    weight_decay: float = 0.1
    """Share of a parameter taken away per update, per unit of learning rate."""
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
    """Adam's second moment in the memory of a row and a column (Shazeer and Stern 2018, arXiv:1804.04235).

    Each layer's matrix is factored by itself, as [inputs, outputs]: [D, N, H] is D x NH.
    """

    exponent: float = 0.8
    """Second moments decay by 1 - t ** -exponent at the t-th update."""
    clip_threshold: float | None = 1.0
    """Largest root mean square of one matrix's direction; None: any."""
    min_factored_size: int = 128
    """Matrices with fewer rows or columns keep their second moments whole."""
    scale_by_parameter: bool = True
    """Whether the learning rate is relative to a matrix's own root mean square."""
    momentum: float = 0.0
    """Decay of the mean of directions; 0 keeps none, and its memory."""

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

    Its rate is 3 to 10 times lower than AdamW's, its weight decay as many times higher.
    """

    b1: float = 0.9
    """Weight of the momentum, against the gradient, in the direction."""
    b2: float = 0.99
    """Decay of the momentum."""

    def __post_init__(self):
        super().__post_init__()
        _check_decays(b1=self.b1, b2=self.b2)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)


@configclass(kw_only=True)
class SGDConfig(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is decoupled here too."""

    momentum: float = 0.9
    """Decay of the sum of gradients; 0 keeps none, and its memory."""
    nesterov: bool = False
    """Whether the direction looks one step of momentum ahead (Sutskever et al. 2013)."""

    def __post_init__(self):
        super().__post_init__()
        _check_decays(momentum=self.momentum)
        check(
            self.momentum > 0 or not self.nesterov,
            "nesterov is True and momentum is 0: the look-ahead is of the momentum; set momentum, or nesterov=False",
        )

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        return optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()


@configclass(kw_only=True)
class AdamConfig:
    """Adam for the parameters of Muon that are not maps between hidden spaces."""

    peak_lr: float | None = None
    """Highest learning rate, under Muon's schedule; None: Muon's own."""
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
    """Momentum made orthogonal by Newton-Schulz iteration (Jordan 2024, github.com/KellerJordan/Muon).

    It treats what has the role of a matrix or of an expert's. Each layer's kernel is taken as the matrix [inputs,
    outputs]: [D, N, H] is D x NH, [N, H, D] is NH x D. All else goes to Adam, with the same schedule and decay mask:
    embeddings and tables, routers, what reads scores of tokens or classes, convolutions and vectors.
    """

    weight_decay: float = 0.1
    """Share of a parameter taken away per update, per unit of its learning rate."""
    momentum: float = 0.95
    """Decay of the mean of gradients."""
    nesterov: bool = True
    """Whether the direction looks one step of momentum ahead."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    matched_rms: float | None = 0.2
    """Root mean square of an update of a full-rank matrix of any shape, per unit of learning rate. 0.2 is AdamW's, so
    that its rate and decay carry over (Liu et al. 2025, arXiv:2502.16982). None: Jordan's scale, an orthogonal matrix
    times sqrt(max(1, outputs / inputs)), which wants a rate near 0.02 and an Adam with a rate of its own."""
    adam: AdamConfig = AdamConfig()
    """Optimizer of all that is not orthogonalised."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(iterations=self.iterations)
        _check_decays(momentum=self.momentum)
        _check_optional("Jordan's scale", matched_rms=self.matched_rms)

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        adam_share = 1.0 if self.adam.peak_lr is None else self.adam.peak_lr / self.peak_lr
        shares = optax.partition({"muon": optax.identity(), "adam": optax.scale(adam_share)}, _muon_or_adam(tree))
        return optax.chain(self._direction(tree), decay, shares, optax.scale_by_learning_rate(rate))

    def _direction(self, tree: Any) -> optax.GradientTransformation:
        muon = scale_by_muon(tree, self.momentum, self.nesterov, self.iterations, self.matched_rms)
        adam = optax.scale_by_adam(self.adam.b1, self.adam.b2, self.adam.epsilon)
        return optax.partition({"muon": muon, "adam": adam}, _muon_or_adam(tree))


@configclass(kw_only=True)
class ScheduleFreeAdamWConfig(Optimizer):
    """AdamW that averages its iterates in place of decaying the rate (Defazio et al. 2024, arXiv:2405.15682).

    Gradients are taken at y, an interpolation; the average x is what to evaluate: see `evaluation_params`. Keep
    parameters in float32: the average is recovered from them. `schedule` should warm up and then stay constant.
    """

    weight_decay: float = 0.1
    """Share of a parameter taken away per update, per unit of learning rate."""
    b1: float = 0.9
    """Share of the average, against the fast iterate, in the point where gradients are taken."""
    b2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    rate_power: float = 2.0
    """An iterate weighs in the average as the highest rate so far to this power."""

    def __post_init__(self):
        super().__post_init__()
        _check_adam(self.b1, self.b2, self.epsilon)
        check(self.b1 > 0, f"b1 is {self.b1}: the average is recovered by division by b1, set it above 0")
        check_not_negative(rate_power=self.rate_power)

    def evaluation_params(self, opt_state: Any, params: Any) -> Any:
        """The average x of the iterates, in the parameters' type.

        Raises:
          ValueError: for the state of another optimizer.
        """
        is_ours = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)  # noqa: E731
        found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(node)]
        check(
            len(found) == 1,
            f"the optimizer state holds {len(found)} schedule-free states: it must be of a transformation that "
            "ScheduleFreeAdamWConfig built",
        )
        average = optax.contrib.schedule_free_eval_params(found[0], optax.tree.cast(params, jnp.float32))
        return optax.tree.cast_like(average, params)

    def _step(self, tree: Any, decay: optax.GradientTransformation, rate: Rate) -> optax.GradientTransformation:
        base = optax.chain(self._direction(tree), decay, optax.scale_by_learning_rate(rate))
        # optax counts schedule-free steps from 1, where the base optimizer counts from 0: the weights must see the
        # rates that were used.
        return optax.contrib.schedule_free(base, lambda count: rate(jnp.asarray(count) - 1), self.b1, self.rate_power)

    def _direction(self, tree: Any) -> optax.GradientTransformation:
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
