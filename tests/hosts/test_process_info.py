"""What a process learns from what started it."""

import os

import pytest

from llm_jax.hosts import process_info as place
from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.process_info import ProcessInfo, find

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, in a process that no scheduler has started."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "TPU_", "JAX_COORDINATOR", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    return lambda *facts: [monkeypatch.setenv(*pair) for found in facts for pair in found.items()]


def test_a_laptop_is_a_single_process(environment):
    assert find(HostsConfig()) is None


@pytest.mark.parametrize(
    "shell",
    [
        {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")},  # salloc
        {name: value for name, value in SLURM.items() if "_STEP_" not in name} | {"SLURM_PROCID": "0"},  # sbatch
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # the interactive step of salloc: tasks of the job
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},  # srun --pty
        OPEN_MPI | URI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_one_process_inside_an_allocation_is_single(environment, shell):
    environment(shell)
    assert find(HostsConfig()) is None


def test_slurm_tells_everything(environment):
    environment(SLURM)
    assert find(HostsConfig()) == ProcessInfo("node07:61441", 3, 2)


@pytest.mark.parametrize(("visible", "devices"), [(None, (3,)), ("0,1,2,3,4,5,6,7", (3,)), ("3", None)])
def test_tasks_of_one_node_take_a_gpu_each_unless_slurm_has_bound_them(environment, visible, devices):
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "3"})
    environment({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert find(HostsConfig()).devices == devices


@pytest.mark.parametrize(
    ("tasks", "node", "devices"),
    [("1,2", "0", None), ("1,2", "1", (0,)), ("2(x2),1", "1", (0,)), ("2(x2),1", "2", None)],
)
def test_nodes_may_have_different_numbers_of_tasks(environment, tasks, node, devices):
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})
    assert find(HostsConfig()).devices == devices


@pytest.mark.parametrize(
    ("bound", "devices"), [({"SLURM_GPUS_PER_TASK": "4"}, None), ({"SLURM_GPU_BIND": "per_task:4"}, None), ({}, (1,))]
)
def test_several_gpus_that_slurm_has_bound_to_a_task_are_all_its_own(environment, bound, devices):
    environment(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"})
    environment({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_STEP_GPUS": "0,1,2,3,4,5,6,7"}, bound)
    assert find(HostsConfig()).devices == devices


@pytest.mark.parametrize("count", [None, 1])
def test_a_single_process_does_not_choose_its_devices_here(environment, count):
    environment()
    with pytest.raises(ValueError, match="select devices with CUDA_VISIBLE_DEVICES"):
        find(HostsConfig(count=count, devices=(0,)))


@pytest.mark.parametrize(("workers", "alone"), [({"TPU_WORKER_HOSTNAMES": "localhost"}, True), ({}, False)])
def test_a_tpu_without_metadata_server_is_single_or_asks_for_the_options(environment, monkeypatch, workers, alone):
    def absent(*_: object) -> None:
        raise ConnectionError("no route")

    for cluster in (place.clusters.GkeTpuCluster, place.clusters.GceTpuCluster):
        monkeypatch.setattr(cluster, "is_env_present", absent)
    environment({"JAX_PLATFORMS": "tpu"}, workers)
    if alone:
        assert find(HostsConfig()) is None
    else:
        with pytest.raises(ValueError, match="not known and its metadata server does not answer.*--hosts.count 1"):
            find(HostsConfig())
        assert find(HostsConfig(count=1)) is None


@pytest.mark.parametrize("part", [None, object()])
def test_a_jax_that_does_not_tell_asks_for_the_options(environment, monkeypatch, part):
    monkeypatch.setattr(place, "clusters", part)  # a version without the private module, or without its classes
    environment(OPEN_MPI | URI)
    with pytest.raises(ValueError, match="without address: set --hosts.address"):
        find(HostsConfig())
    assert find(HostsConfig(address="node:1")).count == 4


@pytest.mark.parametrize("part", [None, object()])
def test_a_jax_that_does_not_tell_the_place_in_a_pod_asks_for_the_options(environment, monkeypatch, part):
    monkeypatch.setattr(place, "clusters", part)
    environment({"JAX_PLATFORMS": "tpu"}, {"TPU_WORKER_HOSTNAMES": "a,b"})
    with pytest.raises(ValueError, match="workers of this TPU are a,b and this version of jax does not report"):
        find(HostsConfig())
    environment({"JAX_PLATFORMS": "tpu"}, {"TPU_WORKER_HOSTNAMES": "a"})
    assert find(HostsConfig()) is None


def test_open_mpi_tells_everything(environment):
    environment(OPEN_MPI | URI)
    found = find(HostsConfig())
    assert (found.host, found.count, found.index, found.devices) == ("10.96.0.1", 4, 3, (1,))


def test_an_mpi_that_does_not_say_the_address_is_refused_with_the_option(environment):
    environment(OPEN_MPI)
    with pytest.raises(ValueError, match="without address: set --hosts.address"):
        find(HostsConfig())
    found = find(HostsConfig(address="node01:8476"))
    assert found == ProcessInfo("node01:8476", 4, 3, (1,))


def test_mpich_and_intel_mpi_tell_count_and_index(environment):
    environment({"PMI_SIZE": "2", "PMI_RANK": "1"})
    assert find(HostsConfig(address="a:1")) == ProcessInfo("a:1", 2, 1)


def test_options_say_it_all_and_win(environment):
    environment(SLURM)
    config = HostsConfig(address="[::1]:80", count=2, index=1, devices=(4, 5))
    found = find(config)
    assert (found.host, found.port, found.count, found.index, found.devices) == ("::1", 80, 2, 1, (4, 5))
    assert find(HostsConfig(count=1)) is None


@pytest.mark.parametrize("given", [{"count": 2}, {"address": "a:1"}, {"index": 0}, {"count": 2, "index": 1}])
def test_half_a_place_is_refused(environment, given):
    environment()
    with pytest.raises(ValueError, match="set --hosts"):
        find(HostsConfig(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"address": "node01"}, "must be HOST:PORT"),
        ({"address": "node01:http"}, "must be HOST:PORT"),
        ({"count": 0}, "count is 0"),
        ({"count": 2, "index": 2}, "must be one of 0 to count - 1"),
        ({"silence_seconds": 0}, "silence_seconds is 0"),
    ],
)
def test_what_is_no_place_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        HostsConfig(**given)
