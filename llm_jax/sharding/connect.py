"""Connections between the processes of a mesh of CPUs, made before anything else may keep one of them."""

import itertools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from llm_jax.hosts.process_group import Hosts


def connect(mesh: Mesh, hosts: Hosts) -> None:
    """Makes a first collective over the groups of every combination of mesh axes, on all hosts at the same time.

    XLA's CPU collectives connect a group of devices when it first meets, by gloo, which gives the others 30 seconds to
    come and fails after that; no option of jax or XLA changes it. Later collectives of the group wait half an hour
    (`--xla_cpu_collective_timeout_seconds`), for hosts that read, compile or save more slowly. jax's compilation cache
    does not even that out on CPUs: only process 0 writes it, and the topology, which is part of an entry's key, has
    another fingerprint in each process, so that the others compile again at every start. On GPUs and TPUs the key is
    the same on all hosts, and collectives wait without such a limit: there is nothing to do.
    """
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    if hosts.count == 1 or mesh.devices.flat[0].platform != "cpu" or not axes:
        return
    groups = [group for size in range(1, len(axes) + 1) for group in itertools.combinations(axes, size)]

    def meet(x: jax.Array) -> jax.Array:
        for group in groups:
            # One after another, in the same order everywhere; the cosine keeps XLA from merging sums of sums.
            x = jax.lax.psum(jnp.cos(x), group)
        return jax.lax.pmean(x, tuple(axes))

    program = jax.jit(
        jax.shard_map(meet, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
    compiled = program.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    hosts.gather("collectives compiled")
    jax.block_until_ready(compiled(jnp.zeros(())))
