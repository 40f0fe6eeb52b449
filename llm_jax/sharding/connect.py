"""Connects the processes of a mesh of CPUs before other work can delay one of them."""

import itertools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from llm_jax.hosts.process_group import Hosts


def connect(mesh: Mesh, hosts: Hosts) -> None:
    """Runs a first collective over the groups of every combination of mesh axes, on all processes at the same time.

    XLA's CPU collectives connect a group of devices by gloo at its first collective. gloo waits 30 seconds for the
    other processes and then fails; no option of jax or XLA changes this. Later collectives of the group wait half an
    hour (`--xla_cpu_collective_timeout_seconds`) for processes that read, compile or save more slowly. On CPUs jax's
    compilation cache does not remove such delays: only process 0 writes it, and the topology, which is part of the key,
    has a different fingerprint in each process, so the others recompile at every start. On GPUs and TPUs the key is the
    same on all processes and collectives have no such limit, so the function does nothing.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    if hosts.count == 1 or mesh.devices.flat[0].platform != "cpu" or not axes:
        return
    groups = [group for size in range(1, len(axes) + 1) for group in itertools.combinations(axes, size)]

    def meet(x: jax.Array) -> jax.Array:
        for group in groups:
            # Sequentially, in the same order on all processes; the cosine prevents XLA from merging sums of sums.
            x = jax.lax.psum(jnp.cos(x), group)
        return jax.lax.pmean(x, tuple(axes))

    program = jax.jit(
        jax.shard_map(meet, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
    compiled = program.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    hosts.gather("collectives compiled")
    jax.block_until_ready(compiled(jnp.zeros(())))
