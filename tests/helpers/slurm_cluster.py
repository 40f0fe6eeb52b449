"""A real SLURM of two virtual nodes on this machine: two slurmd of one host, munge between them, nothing but a folder
written. The first node has the name of the machine, which resolves; the second need not."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
INSTALL = "LLM_JAX_INSTALL_SLURM"

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ReturnToService=2
KillWait=60
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=test Nodes={host},{host}-2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def why_not() -> str | None:
    """What keeps a SLURM from being started here, after installing it where that is asked for; None: nothing."""
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent and os.environ.get(INSTALL) == "1":
        install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES)}"
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        result = subprocess.run(["sh", "-c", install], capture_output=True, text=True, env=quiet)
        if result.returncode != 0:
            return f"apt-get could not install {', '.join(PACKAGES)}: {result.stderr.strip()[-300:]}"
        absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} are not installed; {INSTALL}=1 installs Debian's {', '.join(PACKAGES)} first"
    return None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the cluster with all its files in `folder`; gives the environment in which srun and sbatch reach it."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", f"spool.{host}", f"spool.{host}-2"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder, host=host, ports=_free_ports(3)))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": _path()}
    commands = [
        ["munged", "-F", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
        + [f"--{file}-file={folder}/munge.{file}" for file in ("log", "pid", "seed")],
        ["slurmctld", "-D", "-i"],
        *(["slurmd", "-D", "-N", node] for node in (host, f"{host}-2")),
    ]
    started = []
    try:
        for command in commands:
            log = open(folder / f"{command[0]}{len(started)}.out", "w")  # noqa: SIM115 - lives as long as the daemon
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        _wait_until_idle(environment, folder, host)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def _wait_until_idle(environment: dict[str, str], folder: Path, host: str, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    command = ["sinfo", "--noheader", "--Node", "--format=%N %t"]
    while time.monotonic() < give_up:
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if sorted(result.stdout.split("\n")) == sorted(["", f"{host} idle", f"{host}-2 idle"]):
            return
        time.sleep(0.5)
    logs = "\n".join(f"{path.name}: {path.read_text()[-800:]}" for path in sorted(folder.glob("*.[lo][ou][gt]")))
    raise RuntimeError(f"the nodes are not idle: {result.stdout or result.stderr}\n{logs}")
