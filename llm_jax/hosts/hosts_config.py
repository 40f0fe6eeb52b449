"""Options for multi-process training."""

from llm_jax.core.checks import check, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass


@configclass
class HostsConfig:
    """The processes that train together. Under SLURM, Open MPI and on TPU pods they are detected. Elsewhere set
    address, count and index. A single process needs no options."""

    address: str | None = None
    """HOST:PORT at which process 0 listens; any free port of its machine."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """Index of this process, 0 to count - 1."""
    devices: tuple[int, ...] | None = None
    """Indices of the GPUs of this machine that the process uses; None: all, or one per process if a scheduler starts
    several processes on a machine."""
    arrival_seconds: float = 300.0
    """How long to wait at the start for processes that have not connected."""
    silence_seconds: float = 60.0
    """A process without a heartbeat for this time counts as lost. A process that ends counts as lost at once."""

    def __post_init__(self):
        check_positive(arrival_seconds=self.arrival_seconds, silence_seconds=self.silence_seconds)
        check_positive_if_given(count=self.count)
        check(
            self.index is None or self.index >= 0 and (self.count is None or self.index < self.count),
            f"hosts.index is {self.index} and hosts.count is {self.count}: it must be one of 0 to count - 1",
        )
        port = "" if self.address is None else self.address.rpartition(":")[2]
        check(
            self.address is None or (":" in self.address and port.isdecimal() and 0 < int(port) < 2**16),
            f"hosts.address is {self.address!r}: it must be HOST:PORT of the machine of host 0, such as node01:8476",
        )
