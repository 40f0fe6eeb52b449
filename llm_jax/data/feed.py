"""Global batch arrays, sharded over the mesh, from the rows of this process."""

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.core.checks import check

Tree = TypeVar("Tree")


def global_batch(rows: Tree, sharding: NamedSharding) -> Tree:
    """Arrays [B, ...] with `sharding`, from each process's own numpy rows [B / hosts, ...].

    Each process passes the rows that `host_share` assigns to it and `Dataset.train_iterator` reads. In a job of one
    process these are all rows.
    """
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, np.asarray(array)), rows)


def host_share(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
    """(host, hosts) with which this process must read its rows of a batch with `sharding`.

    On a data-parallel mesh these are the process index and count. If model axes span processes, several processes read
    the same rows.

    Raises:
      ValueError: if the number of rows is not divisible by the number of shards, or if this process's devices do not
        hold one consecutive, equal share of the rows.
    """
    (names, *_), mesh = (*sharding.spec, None), sharding.mesh
    names = (names,) if isinstance(names, str) else names or ()
    parts = math.prod(mesh.shape[name] for name in names)
    check(
        batch_size % parts == 0,
        f"data.batch_size is {batch_size} and the mesh divides the rows of a batch over {parts} devices "
        f"({', '.join(f'{name} {mesh.shape[name]}' for name in names)}): set batch_size to a multiple of {parts}, "
        "or reduce those axes",
    )
    rows_only = NamedSharding(mesh, PartitionSpec(*sharding.spec[:1]))
    held = rows_only.addressable_devices_indices_map((batch_size,)).values()
    ranges = sorted({rows.indices(batch_size)[:2] for index in held if index is not None for rows in index})
    start, stop = ranges[0][0], ranges[-1][1]
    count = sum(last - first for first, last in ranges)
    check(
        count == stop - start and start % count == 0 and batch_size % count == 0,
        f"this process's devices hold the rows {ranges} of a batch of {batch_size}: they must be one consecutive, "
        "equal share; order the mesh's devices by process along the data axes",
    )
    return start // count, batch_size // count
