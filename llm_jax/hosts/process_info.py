"""Process discovery: address, number of processes and index, from options, SLURM, Open MPI or TPU metadata."""

import dataclasses
import os
from typing import Any

from llm_jax.core.checks import check
from llm_jax.hosts.hosts_config import HostsConfig

try:
    from jax._src import clusters
except ImportError:  # no public part of jax
    clusters = None


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """This process among `count`."""

    address: str
    """HOST:PORT where host 0 waits."""
    count: int
    index: int
    devices: tuple[int, ...] | None = None
    """GPUs of this machine that are this process's; None: all."""

    @property
    def host(self) -> str:
        """The machine of host 0."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def find(config: HostsConfig) -> ProcessInfo | None:
    """The place that `config` gives, what it leaves open being taken from the scheduler; None for a single process.

    Raises:
      ValueError: where there are several processes and one of address, count and index is not known, or a single one
        is to use some devices only.
    """
    place = None if config.count == 1 else _among_several(config)
    check(
        place is not None or config.devices is None,
        f"hosts.devices is {config.devices} and this is a single process, which uses all devices that it sees: leave "
        "it out, and choose with CUDA_VISIBLE_DEVICES",
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
        f"several processes are to train together ({facts}) and nothing says the {' and '.join(missing)}: give "
        f"{', '.join(f'--hosts.{name}' for name in missing)}",
    )
    return ProcessInfo(**facts)


_FACTS = ("address", "count", "index", "devices")


def _told_by_scheduler() -> dict:
    """What of _FACTS the environment tells; empty where no scheduler has started this process."""
    return next((facts for told in (_slurm, _open_mpi, _other_mpi, _tpu_pod) if (facts := told())), {})


def _cluster(name: str) -> Any:
    """What jax knows of a kind of cluster. It is no public part of jax: None where a version has it no more."""
    return getattr(clusters, name, None)


def _address(name: str) -> dict[str, str]:
    """HOST:PORT of host 0 as jax finds it in a kind of cluster; empty, so that --hosts.address is asked for, where this
    version of jax does not tell."""
    try:
        return {"address": _cluster(name).get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT"))}
    except (AttributeError, TypeError):
        return {}


def _slurm() -> dict:
    # The step's own number of tasks: SLURM_NTASKS is the job's, also in the one shell that salloc gives.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if "SLURM_PROCID" not in os.environ or tasks == 1:
        return {}
    on_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0]
    return {
        **_address("SlurmCluster"),
        "count": tasks,
        "index": int(os.environ["SLURM_PROCID"]),
        "devices": _one_of(int(os.environ["SLURM_LOCALID"]), int(on_node)),
    }


def _open_mpi() -> dict:
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return {}
    count, local = int(os.environ["OMPI_COMM_WORLD_SIZE"]), int(os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"])
    facts = {
        "count": count,
        "index": int(os.environ["OMPI_COMM_WORLD_RANK"]),
        "devices": _one_of(int(os.environ["OMPI_COMM_WORLD_LOCAL_RANK"]), local),
    }
    # Version 5 no longer says where mpirun runs.
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
    except OSError as error:  # of `requests`: there is no metadata server
        workers = _tpu_workers()
        check(
            workers != "" and "," not in workers,
            f"the workers of this TPU are {workers or 'not known'} and its metadata server does not answer ({error}): "
            "give --hosts.count 1 for a single process, else --hosts.address, --hosts.count and --hosts.index",
        )
        return {}


def _tpu_workers() -> str:
    """Of this TPU, as the environment names them, with commas between."""
    return os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES", ""))


def _told_by_pod() -> dict:
    pods = [pod for name in ("GkeTpuCluster", "GceTpuCluster") if (pod := _cluster(name))]
    check(
        len(pods) > 0 or "," not in _tpu_workers(),
        f"the workers of this TPU are {_tpu_workers()} and this version of jax does not tell their place among them: "
        "give --hosts.address, --hosts.count and --hosts.index",
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
    """The GPU of the process `local` of `on_node` on its machine, unless the scheduler shows it its own only."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    fewer = visible is not None and len(visible.split(",")) < on_node
    # SLURM_STEP_GPUS would not tell: it is there for every step with GPUs, bound to tasks or not.
    bound = fewer or not os.environ.keys().isdisjoint({"SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"})
    return None if on_node == 1 or bound else (local,)
