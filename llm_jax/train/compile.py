"""How the programs of training are compiled."""

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
    """A compiled update, or one that compiles when it is called."""

    def __call__(self, state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]: ...

    def lower(self, state: TrainState, batch: AnyBatch) -> jax.stages.Lowered:
        """The program for states and batches of these shapes."""
        ...


def compiled_update(
    make: Callable[[StepShardings | None, str | None], Pure],
    layout: Layout,
    shardings: TrainState,
    gradients: Any,
    precision: Precision,
) -> Update:
    """The update over all devices of `layout`; the state is donated.

    Args:
      make: gives the pure update, as `train_step` does with its last two arguments.
      shardings: where the state lies while it is updated.
      gradients: where gradients lie.
    """
    if layout.uses_pmap:
        return Mapped(make(None, DATA), layout)
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
    """`jax.jit(function, **options)` with the compiler options that serve `device` and `precision` best.

    Args:
      device: one of those that the program is for, which need not be there; None: the first of this machine.
    """
    device = jax.devices()[0] if device is None else device
    return jax.jit(function, compiler_options=compiler_options(device, precision) or None, **options)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """An update by `jax.pmap`, called as any other: the state is one, not one for each device."""

    update: Pure
    layout: Layout

    @functools.cached_property
    def program(self) -> Any:
        """
        Raises:
          ValueError: in a job of several processes, each of which would get a state of its own.
        """
        check(
            jax.process_count() == 1,
            f"strategy is DataParallel(use_pmap=True) and there are {jax.process_count()} processes: by jax.pmap the "
            "state would be each process's own, which no checkpoint holds; set use_pmap to False",
        )
        options = {"axis_name": DATA, "in_axes": (None, 0), "out_axes": (None, None), "donate_argnums": 0}
        return jax.pmap(self.update, devices=list(self.layout.concrete.devices.flat), **options)

    def __call__(self, state: TrainState, batch: AnyBatch) -> tuple[TrainState, StepReport]:
        # By an executable that is kept: jax.pmap compiles again for states that lie otherwise, as the second one does.
        key = _shapes(batch)
        if key not in self._executables:
            self._executables[key] = self.lower(state, batch).compile()
        return self._executables[key](state, self._by_device(batch))

    def lower(self, state: TrainState, batch: AnyBatch) -> jax.stages.Lowered:
        """The program for states and batches of these shapes; the same at every call, so that it is compiled once."""
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
    """Options of XLA by name."""
    if device.platform == "cpu" and precision.compute == "bfloat16" and jax.__version_info__ >= (0, 12):
        # bfloat16 products by oneDNN use the processor's own instructions; the default does for few operand layouts.
        # jax 0.10 compiles the same program with it as without; 0.11 was not tried.
        return {"xla_cpu_experimental_onednn_custom_call": True}
    chip = chips.chip(device.device_kind)
    return dict(chip.compiler_options) if chip else {}
