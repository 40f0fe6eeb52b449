"""A program, to be run beside the tests: compiles train steps for eight devices and writes them down.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.planning.compiled_programs FOLDER cpu
    TPU_SKIP_MDS_QUERY=1 python -m tests.planning.compiled_programs FOLDER tpu

FOLDER/NAME.hlo is the compiled text of each; printed is JSON, {name: number of parameters}.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import PartitionSpec

from llm_jax.core.dtypes import MIXED, Precision
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters
from llm_jax.models.config import TransformerConfig
from llm_jax.models.families.gpt2 import gpt2
from llm_jax.models.families.llama import llama
from llm_jax.models.stack import Execution
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.sharding import partition
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import DataParallel, FullySharded, ShardingConfig
from llm_jax.train.state import initial_state, state_shardings
from llm_jax.train.step import StepConfig, train_step

DEVICES = 8
FLOAT32 = Precision()
DATA = ShardingConfig(MeshConfig(data=DEVICES), DataParallel())
SHARDED = ShardingConfig(MeshConfig(data=1, fsdp=DEVICES), FullySharded())
BOTH = ShardingConfig(MeshConfig(data=2, fsdp=4), FullySharded())
OFFLOADED = ("all_gather", "2d_all_gather", "3d_all_gather", "reduce_scatter", "nd_reduce_scatter", "all_reduce")
# A torus must be said to be one; without it the TPU compiler gathers by all-reduce.
TORUS = {
    "wrap": (True, True, True),
    "chips_per_host_bounds": (2, 2, 1),
    "chip_config_name": "megacore",
    "num_slices": 1,
}


def step(
    config: TransformerConfig,
    sharding: ShardingConfig,
    devices: list[jax.Device],
    length: int,
    precision: Precision = FLOAT32,
    options: Mapping[str, str] = MappingProxyType({}),
) -> jax.stages.Compiled:
    """The update of a model with a loop over its layers, two rows to a device."""
    config = dataclasses.replace(config, execution=Execution(unroll=1))
    layout = Layout.of(sharding, devices)
    model, optimizer = Transformer(config, precision), optax.adamw(1e-2)
    state = jax.eval_shape(functools.partial(initial_state, model, optimizer, 0, False))
    places = state_shardings(state, abstract_parameters(model)[1], layout)
    batch = CausalLMConfig().abstract_batch(config, None, length, 2 * DEVICES)
    update = jax.jit(
        train_step(model, CausalLMConfig(), optimizer, StepConfig(), 0),
        in_shardings=(places, layout.rows),
        out_shardings=(places, None),
        donate_argnums=0,
    )
    with partition.activate(layout):
        return update.lower(state, batch).compile(compiler_options=dict(options) or None)


def textbook(layers: int = 5, width: int = 64) -> jax.stages.Compiled:
    """The gradients of a stack of matrices, gathered for each use and scattered as they are reduced."""
    mesh = jax.make_mesh((DEVICES,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(shards_LDD: jax.Array, x_BD: jax.Array) -> jax.Array:
        @jax.checkpoint
        def layer(x_BD: jax.Array, shard_DD: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x_BD @ jax.lax.all_gather(shard_DD, "fsdp", tiled=True)), None

        return jax.lax.scan(layer, x_BD, shards_LDD)[0].sum()

    specs = PartitionSpec(None, "fsdp"), PartitionSpec("fsdp")
    gradient = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    shapes = (layers, width, width), (2 * DEVICES, width)
    return jax.jit(gradient).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def for_cpus() -> dict[str, tuple[jax.stages.Compiled, int]]:
    """Name: (program, number of parameters)."""
    length = 16
    tied = gpt2(4, heads=8, width=64, vocab_size=64, max_length=length)
    untied = llama(4, heads=8, width=64, hidden=128, kv_heads=8, vocab_size=64, max_length=length)
    models = {
        "gpt2, data": (tied, DATA),
        "gpt2, sharded": (tied, SHARDED),
        "gpt2, both": (tied, BOTH),
        "llama, data": (untied, DATA),
        "llama, sharded": (untied, SHARDED),
    }
    programs = {
        name: (step(config, layout, jax.devices(), length), count.parameters(config))
        for name, (config, layout) in models.items()
    }
    return programs | {"textbook": (textbook(), 5 * 64 * 64)}


def for_tpus() -> dict[str, tuple[jax.stages.Compiled, int]]:
    """Name: (program, number of parameters). v5e's collectives run beside fusions, v5p's on SparseCores if so told."""
    config = gpt2(2, heads=8, width=512, vocab_size=1024, max_length=128)
    offload = {f"xla_tpu_enable_sparse_core_collective_offload_{name}": "true" for name in OFFLOADED}
    chips = {"v5e": ("v5e:2x4", {}, {}), "v5p": ("v5p:2x2x2", TORUS, offload)}
    programs = {}
    for name, (topology, shape, options) in chips.items():
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **shape).devices
        compiled = step(config, SHARDED, list(np.ravel(devices)), 128, MIXED, options)
        programs[f"{name}, sharded"] = compiled, count.parameters(config)
    return programs


def main(folder: str, platform: str) -> None:
    """Compiles, writes, prints."""
    programs = {"cpu": for_cpus, "tpu": for_tpus}[platform]()
    for name, (compiled, _) in programs.items():
        (Path(folder) / f"{name}.hlo").write_text(compiled.as_text())
    print(json.dumps({name: parameters for name, (_, parameters) in programs.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
