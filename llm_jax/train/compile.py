"""Compilation of training steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax

from llm_jax.core import chips
from llm_jax.core.checks import check
from llm_jax.core.chips import Device
from llm_jax.core.dtypes import Precision
from llm_jax.objectives.objective import AnyBatch
from llm_jax.sharding.mesh import DATA
from llm_jax.sharding.partition import Layout
from llm_jax.train.state import TrainState, at_rest
from llm_jax.train.step import StepReport, StepShardings

Pure = Callable[[TrainState, AnyBatch], tuple[TrainState, StepReport]]


class Update(Protocol):
    """A compiled training step, or one that compiles at its first call."""

    def __call__(self, state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]: ...

    def lower(self, state: TrainState, batch: AnyBatch) -> jax.stages.Lowered:
        """The lowered step for states and batches of these shapes."""
        ...


def compiled_update(
    make: Callable[[StepShardings | None, str | None], Pure],
    layout: Layout,
    shardings: TrainState,
    gradients: Any,
    precision: Precision,
) -> Update:
    """The training step over all devices of `layout`. The state is donated.

    Args:
      make: returns the pure step function from the arguments `places` and `axis` of `train_step`.
      shardings: shardings of the state during the step.
      gradients: shardings of the gradients.
    """
    if layout.uses_pmap:
        return Mapped(make(None, DATA), layout)
    # The step receives and returns the state as it is between steps, and moves an offloaded part itself (step.py). A
    # donated state lends its memory to the new one.
    resting = at_rest(shardings, layout)
    return compiled(
        make(StepShardings(gradients, shardings.opt_state), None),
        precision,
        layout.device,
        in_shardings=(resting, layout.rows),
        out_shardings=(resting, layout.whole),
        donate_argnums=0,
    )


def compiled(
    function: Callable, precision: Precision, device: Device | None = None, **options: Any
) -> jax.stages.Wrapped:
    """`jax.jit(function, **options)` with the compiler options for `device` and `precision`.

    Args:
      device: a target device, which need not be present (AOT); None: the first device of this machine.
    """
    device = jax.devices()[0] if device is None else device
    return jax.jit(function, compiler_options=compiler_options(device, precision) or None, **options)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A training step by `jax.pmap`, with the interface of `Update`: the state has no device axis."""

    update: Pure
    layout: Layout

    @functools.cached_property
    def program(self) -> Any:
        """The `jax.pmap` function.

        Raises:
          ValueError: in a job of several processes, in which each process would have its own state.
        """
        check(
            jax.process_count() == 1,
            f"strategy is DataParallel(use_pmap=True) and there are {jax.process_count()} processes: jax.pmap keeps a "
            "state per process, which checkpoints do not support; set use_pmap to False",
        )
        # The state is the same on all devices, and so are the results: gradients and metrics are summed over devices.
        options = {"axis_name": DATA, "in_axes": (None, 0), "out_axes": (None, None), "donate_argnums": 0}
        return jax.pmap(self.update, devices=list(self.layout.concrete.devices.flat), **options)

    def __call__(self, state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]:
        # Executables are cached here, because jax.pmap compiles again for a state with another sharding, which the
        # state after the first step has.
        key = _shapes(batch)
        if key not in self._executables:
            self._executables[key] = self.lower(state, batch).compile()
        return self._executables[key](state, self._by_device(batch))

    def lower(self, state: TrainState, batch: AnyBatch) -> jax.stages.Lowered:
        """The lowered step for states and batches of these shapes. It is cached, so that it is compiled once."""
        key = _shapes(batch)
        if key not in self._lowered:
            self._lowered[key] = self.program.lower(state, jax.eval_shape(self._by_device, batch))
        return self._lowered[key]

    @functools.cached_property
    def _lowered(self) -> dict[tuple, jax.stages.Lowered]:
        return {}

    @functools.cached_property
    def _executables(self) -> dict[tuple, jax.stages.Compiled]:
        return {}

    def _by_device(self, batch: AnyBatch) -> AnyBatch:
        return jax.tree.map(lambda x: x.reshape(self.layout.mesh.size, -1, *x.shape[1:]), batch)


def _shapes(batch: AnyBatch) -> tuple:
    return tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))


def compiler_options(device: Device, precision: Precision) -> dict[str, Any]:
    """XLA compiler options by name."""
    if device.platform == "cpu" and precision.compute == "bfloat16" and jax.__version_info__ >= (0, 12):
        # oneDNN computes bfloat16 products with the processor's bfloat16 instructions. The default backend does so only
        # for few operand layouts. In jax 0.10 the option does not change the compiled program; 0.11 is untested.
        return {"xla_cpu_experimental_onednn_custom_call": True}
    chip = chips.chip(device.device_kind)
    return dict(chip.compiler_options) if chip else {}
