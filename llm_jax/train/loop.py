"""The training loop: step, data, hooks. Everything else is a hook."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from llm_jax.core.metrics import means
from llm_jax.core.trees import named_leaves
from llm_jax.objectives.objective import AnyBatch
from llm_jax.train.state import TrainState
from llm_jax.train.step import StepReport


class Stop(Exception):
    """Raised by a hook to end training after the current step. `on_end` of all hooks still runs."""


class Hook:
    """Base class of hooks, with the methods that the loop calls. `step` is the number of completed steps."""

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Called when the metrics of `step` have reached the host. The next step may already be running."""

    def on_gradient_norms(self, step: int, norms: Any) -> None:
        """Called before `on_metrics`, with the tree of gradient norms of each parameter before clipping: float32 numpy
        arrays []."""

    def due(self, step: int) -> bool:
        """Whether to call `on_step` after `step`. The device then waits for the host."""
        return False

    def on_step(self, step: int, state: TrainState) -> TrainState | None:
        """Called after `step` is complete. `state` is valid until this returns.

        Returns:
          None, or a state whose weights, optimizer state and average replace the current ones, such as that of an
          earlier checkpoint after a loss spike. The step count and the position in the data do not change.
        """

    def on_end(self, step: int, state: TrainState, finished: bool) -> None:
        """Called when training has ended after `step` steps. `finished` is False if a Stop ended it early."""


def train(
    state: TrainState,
    step_function: Callable[[TrainState, AnyBatch], tuple[TrainState, StepReport]],
    batches: Iterator[AnyBatch],
    hooks: list[Hook],
    first: int,
    last: int,
) -> TrainState:
    """Runs steps `first` + 1 to `last`.

    Step n + 1 is dispatched before the metrics of step n are read, so that the device waits for the host only if a
    hook is due. metrics['seconds'] is the time of the step without the hooks after it.

    Raises:
      FloatingPointError: at the first step whose loss or gradient is not finite. The state is that before the step.
    """
    pending: tuple[int, StepReport] | None = None
    step, mark = first, time.perf_counter()
    try:
        for step in range(first + 1, last + 1):
            state, report = step_function(state, next(batches))
            # The metrics of the step before are read while this step runs on the device.
            former, pending = pending, (step, report)
            mark = _read(former, hooks, mark)
            if due := [hook for hook in hooks if hook.due(step)]:
                # Hooks that get the state also get the metrics of the same step, before it. Their own time counts for
                # no step.
                former, pending = pending, None
                _read(former, hooks, mark)
                for hook in due:
                    if (other := hook.on_step(step, state)) is not None:
                        state = dataclasses.replace(other, step=state.step)
                mark = time.perf_counter()
    except Stop:
        pass
    # A hook may also stop while the last metrics are read; training has ended already.
    with contextlib.suppress(Stop):
        _read(pending, hooks, mark)
    for hook in hooks:
        hook.on_end(step, state, finished=step == last)
    return state


def _read(pending: tuple[int, StepReport] | None, hooks: list[Hook], mark: float) -> float:
    """Fetches the metrics of a step and passes them to the hooks. Returns the time at which they were complete."""
    if pending is None:
        return mark
    step, report = pending
    # The report is complete when the step is. Its time is taken before anything is fetched or written.
    report = jax.block_until_ready(report)
    now = time.perf_counter()
    _check_finite(step, report)
    metrics = means(report.metrics)
    norms = jax.device_get(report.gradient_norms)
    metrics["gradient_norm"] = sum(float(norm) ** 2 for norm in jax.tree.leaves(norms)) ** 0.5
    if report.learning_rate is not None:
        metrics["learning_rate"] = float(jax.device_get(report.learning_rate))
    metrics["seconds"] = now - mark
    for hook in hooks:
        hook.on_gradient_norms(step, norms)
    for hook in hooks:
        hook.on_metrics(step, metrics)
    return now


def _check_finite(step: int, report: StepReport) -> None:
    if bool(report.finite):
        return
    norms: list[tuple[str, Any]] = list(named_leaves(jax.device_get(report.gradient_norms)))
    bad = [name for name, norm in norms if not abs(float(norm)) < float("inf")]
    loss = means(report.metrics)["loss"]
    raise FloatingPointError(
        f"step {step} is not finite: loss {loss}, gradients not finite in {bad or 'no tensor'}. The update was not "
        "applied; the last checkpoint has earlier weights. Lower the learning rate, clip gradients, or lengthen the "
        "warm-up"
    )
