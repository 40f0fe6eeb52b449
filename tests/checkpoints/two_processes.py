"""Run by test_processes.py, twice at once. Usage: two_processes.py PROCESS PORT DIRECTORY.

Prints the step resumed from, the steps skipped and the position of the data; then the names in DIRECTORY.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.checkpoints import restore
from llm_jax.checkpoints.record import Damaged
from tests.checkpoints.states import abstract, checkpoints, train_state


def sharded(tree, mesh):
    """Matrices by rows over both processes, all else on every device."""

    def put(leaf):
        spec = PartitionSpec("rows") if leaf.ndim == 2 else PartitionSpec()
        host = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), lambda index: host[index])

    return jax.tree.map(put, tree)


def assert_equal(restored, expected):
    for leaf, other in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(other)[shard.index])


def main(process: int, port: int, directory: Path) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    like = abstract(sharded(train_state(), mesh))
    with checkpoints(directory, keep_last=3) as opened:
        for step in (1, 2, 3):
            opened.save(step, sharded(train_state(step), mesh), {"position": step}, {})
    multihost_utils.sync_global_devices("saved")
    if process == 0:
        largest = max((path for path in (directory / "3").rglob("*")), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    multihost_utils.sync_global_devices("damaged 3")
    if process == 1:
        fail_on(2)
    with checkpoints(directory, keep_last=3) as opened:
        restored = opened.restore(like)
        assert_equal(restored.state, train_state(restored.step))
        print(restored.step, [step for step, _ in restored.skipped], restored.data["position"])
        opened.save(2, sharded(train_state(2), mesh), {"position": 2}, {})
    multihost_utils.sync_global_devices("saved again")
    print(*sorted(path.name for path in directory.iterdir()))


def fail_on(step: int) -> None:
    """From now on this process alone cannot read the arrays of `step`."""
    read = restore._read_arrays

    def failing(path, abstract_state):
        if path.parent.name == str(step):
            raise Damaged("for the test")
        return read(path, abstract_state)

    restore._read_arrays = failing


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
