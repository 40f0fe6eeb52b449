"""How the programs of training are compiled."""

from collections.abc import Callable
from typing import Any

import jax

from llm_jax.core.dtypes import Precision
from llm_jax.data.batch import Batch
from llm_jax.sharding.mesh import DATA
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel
from llm_jax.train.state import TrainState, at_rest
from llm_jax.train.step import Places, StepReport

Update = Callable[[TrainState, Batch], tuple[TrainState, StepReport]]


def compiled_update(
    make: Callable[[Places | None, str | None], Update],
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
    if layout.strategy == DataParallel(mapped=True):
        return _mapped(make(None, DATA), layout)
    resting = at_rest(shardings, layout)
    return compiled(
        make(Places(gradients, shardings.opt_state), None),
        precision,
        in_shardings=(resting, layout.rows),
        out_shardings=(resting, layout.whole),
        donate_argnums=0,
    )


def compiled(function: Callable, precision: Precision, **options: Any) -> Callable:
    """`jax.jit(function, **options)` with the compiler options that serve the default platform and `precision` best."""
    return jax.jit(function, compiler_options=_compiler_options(precision), **options)


def _mapped(update: Update, layout: Layout) -> Update:
    """By `jax.pmap`, to be called as the others: the state is one, not one for each device."""
    devices = list(layout.mesh.devices.flat)
    program = jax.pmap(update, DATA, in_axes=(None, 0), out_axes=(None, None), devices=devices, donate_argnums=0)
    by_device = jax.jit(lambda batch: jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch))
    return lambda state, batch: program(state, by_device(batch))


def _compiler_options(precision: Precision) -> dict[str, Any] | None:
    if jax.default_backend() == "cpu" and precision.compute == "bfloat16" and jax.__version_info__ >= (0, 12):
        # bfloat16 products by oneDNN use the processor's own instructions; the default does for few operand layouts.
        # jax 0.10 compiles the same program with it as without; 0.11 was not tried.
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return None
