"""Process discovery: address, number of processes and index, from options, SLURM, Open MPI or TPU metadata."""

import dataclasses
import os
from typing import Any

from llm_jax.core.checks import check
from llm_jax.hosts.hosts_config import HostsConfig

try:
    from jax._src import clusters
except ImportError:  # not public API of jax
    clusters = None


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Address, number of processes, and the index and devices of this process."""

    address: str
    """HOST:PORT at which process 0 listens."""
    count: int
    index: int
    devices: tuple[int, ...] | None = None
    """GPUs of this machine that this process uses; None: all."""

    @property
    def host(self) -> str:
        """The machine of process 0."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def find(config: HostsConfig) -> ProcessInfo | None:
    """The process info from `config`, and from the scheduler for fields that are None. None for a single process.

    Raises:
      ValueError: if there are several processes and address, count or index is not known, or if `devices` is set for a
        single process.
    """
    place = None if config.count == 1 else _among_several(config)
    check(
        place is not None or config.devices is None,
        f"hosts.devices is {config.devices} and this is a single process, which uses all visible devices: remove it, "
        "and select devices with CUDA_VISIBLE_DEVICES",
    )
    return place


def _among_several(config: HostsConfig) -> ProcessInfo | None:
    given = {name: value for name, value in dataclasses.asdict(config).items() if name in _FACTS and value is not None}
    told = {} if {"address", "count", "index"} <= given.keys() else _told_by_scheduler()
    facts = told | given
    if not given.keys() & {"address", "count", "index"} and facts.get("count", 1) == 1:
        return None
    missing = [name for name in ("address", "count", "index") if name not in facts]
    check(
        not missing,
        f"several processes were started ({facts}) without {' and '.join(missing)}: set "
        f"{', '.join(f'--hosts.{name}' for name in missing)}",
    )
    return ProcessInfo(**facts)


_FACTS = ("address", "count", "index", "devices")


def _told_by_scheduler() -> dict:
    """Those of _FACTS that the environment gives; empty if no scheduler has started this process."""
    return next((facts for told in (_slurm, _open_mpi, _other_mpi, _tpu_pod) if (facts := told())), {})


def _cluster(name: str) -> Any:
    """A cluster class of jax, which is not public API; None if this version of jax does not have it."""
    return getattr(clusters, name, None)


def _address(name: str) -> dict[str, str]:
    """HOST:PORT of process 0 from a cluster class of jax. Empty if this version of jax cannot determine it, so that
    --hosts.address is required."""
    try:
        return {"address": _cluster(name).get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT"))}
    except (AttributeError, TypeError):
        return {}


def _slurm() -> dict:
    # The number of tasks of the SLURM step. SLURM_NTASKS is that of the job, even in the single shell of salloc.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" not in os.environ or tasks == 1:
        return {}
    on_nodes = os.environ.get("SLURM_STEP_TASKS_PER_NODE")
    here = _tasks_per_node(on_nodes)[int(os.environ["SLURM_NODEID"])] if on_nodes else 1
    return {
        **_address("SlurmCluster"),
        "count": tasks,
        "index": int(os.environ["SLURM_PROCID"]),
        "devices": _one_of(int(os.environ["SLURM_LOCALID"]), here),
    }


def _tasks_per_node(text: str) -> list[int]:
    """Number of tasks of each node, from SLURM's notation: "2(x3),1" is three nodes with two tasks and one with one."""
    found = []
    for part in text.split(","):
        tasks, _, nodes = part.partition("(x")
        found += [int(tasks)] * int(nodes.removesuffix(")") or 1)
    return found


def _open_mpi() -> dict:
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return {}
    count, local = int(os.environ["OMPI_COMM_WORLD_SIZE"]), int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    facts = {
        "count": count,
        "index": int(os.environ["OMPI_COMM_WORLD_RANK"]),
        "devices": _one_of(int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]), local),
    }
    # Open MPI 5 no longer gives the address of mpirun.
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        facts |= _address("OmpiCluster")
    return facts


def _other_mpi() -> dict:
    if "PMI_SIZE" not in os.environ or "PMI_RANK" not in os.environ:
        return {}
    return {"count": int(os.environ["PMI_SIZE"]), "index": int(os.environ["PMI_RANK"])}


def _tpu_pod() -> dict:
    if "tpu" not in os.environ.get("JAX_PLATFORMS", "tpu"):
        return {}
    try:
        return _told_by_pod()
    except OSError as error:  # from `requests`: there is no metadata server
        workers = _tpu_workers()
        check(
            workers != "" and "," not in workers,
            f"the workers of this TPU are {workers or 'not known'} and its metadata server does not answer ({error}): "
            "set --hosts.count 1 for a single process, else --hosts.address, --hosts.count and --hosts.index",
        )
        return {}


def _tpu_workers() -> str:
    """The workers of this TPU from the environment, separated by commas."""
    return os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))


def _told_by_pod() -> dict:
    pods = [pod for name in ("GkeTpuCluster", "GceTpuCluster") if (pod := _cluster(name))]
    check(
        len(pods) > 0 or "," not in _tpu_workers(),
        f"the workers of this TPU are {_tpu_workers()} and this version of jax does not report the index of a worker: "
        "set --hosts.address, --hosts.count and --hosts.index",
    )
    pod = next((cluster for cluster in pods if cluster.is_env_present()), None)
    if pod is None or pod.get_process_count() == 1:
        return {}
    return {
        "address": pod.get_coordinator_address(300, os.environ.get("JAX_COORDINATOR_PORT")),
        "count": pod.get_process_count(),
        "index": pod.get_process_id(),
    }


def _one_of(local: int, on_node: int) -> tuple[int, ...] | None:
    """The GPU of process `local` of `on_node` on its machine. None for all GPUs that it sees: if it is the only process
    there, or if the scheduler already restricts its GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    fewer = visible is not None and len(visible.split(",")) < on_node
    # SLURM_STEP_GPUS does not help: it is set for every step with GPUs, whether they are bound to tasks or not.
    bound = fewer or not os.environ.keys().isdisjoint({"SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"})
    return None if on_node == 1 or bound else (local,)
