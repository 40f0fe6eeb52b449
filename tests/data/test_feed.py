import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llm_jax.data.feed import global_batch, host_share
from llm_jax.objectives.batch import Batch
from tests.helpers import compiler

REPOSITORY = Path(__file__).parents[2]

# Two processes of two devices each, on meshes (data, model). Every process prints what it must read and where each
# device's rows came from. In the layout "across" each process holds half of the model for all rows.
PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", 2, process)
from llm_jax.data.feed import global_batch, host_share
devices = np.array(sorted(jax.devices(), key=lambda device: device.id))
layouts = {"data": devices.reshape(4, 1), "model": devices.reshape(2, 2), "across": devices.reshape(2, 2).T}
facts = {}
for name, layout in layouts.items():
    mesh, spec = Mesh(layout, ("data", "model")), PartitionSpec("data")
    host, hosts = host_share(NamedSharding(mesh, spec), 8)
    share = 8 // hosts
    local = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)[host * share : (host + 1) * share]
    array = global_batch({"tokens": local}, NamedSharding(mesh, spec))["tokens"]
    shards = [[shard.index[0].indices(8)[0], shard.data.tolist()] for shard in array.addressable_shards]
    facts[name] = {"host": host, "hosts": hosts, "shape": array.shape, "shards": shards}
print(json.dumps(facts))
"""


def test_one_process_gets_its_own_rows_back():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    rows_over_devices = NamedSharding(mesh, PartitionSpec("data"))
    assert host_share(rows_over_devices, 6) == (0, 1)
    rows = {name: np.arange(6 * 5, dtype=np.int32).reshape(6, 5) for name in ("tokens", "segment_ids", "positions")}
    batch = Batch.next_tokens(rows)
    fed = global_batch(batch, rows_over_devices)
    assert isinstance(fed.inputs.tokens_BT, jax.Array) and fed.inputs.tokens_BT.sharding == rows_over_devices
    jax.tree.map(np.testing.assert_array_equal, fed, batch)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused_with_the_axes():
    mesh = jax.sharding.AbstractMesh((2, 3), ("data", "fsdp"))
    with pytest.raises(ValueError, match=r"over 6 devices \(data 2, fsdp 3\): set batch_size to a multiple of 6"):
        host_share(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 8)


@pytest.mark.slow
def test_two_processes_make_one_batch_of_the_rows_that_each_was_told_to_read():
    everything = np.arange(8 * 3).reshape(8, 3)
    expected_shares = {"data": [(0, 2), (1, 2)], "model": [(0, 2), (1, 2)], "across": [(0, 1), (0, 1)]}
    processes = _run_two_processes()
    for layout, shares in expected_shares.items():
        facts = [process[layout] for process in processes]
        assert [(fact["host"], fact["hosts"]) for fact in facts] == shares
        for fact in facts:
            assert fact["shape"] == [8, 3]
            for start, rows in fact["shards"]:
                np.testing.assert_array_equal(rows, everything[start : start + len(rows)])


def _run_two_processes() -> list[dict]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | compiler.devices(2)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(process), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]
