"""What an option says of the processes that train together."""

from llm_jax.core.checks import check, check_positive, check_positive_if_given
from llm_jax.core.configclass import configclass


@configclass
class HostsConfig:
    """The processes that train together. SLURM, Open MPI and TPU pods tell by themselves; elsewhere address, count and
    index say it, and one process alone needs none of it."""

    address: str | None = None
    """HOST:PORT where host 0 waits for the others; any free port of its machine."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """This process, 0 to count - 1."""
    devices: tuple[int, ...] | None = None
    """Indices of the GPUs of this machine that the process uses; None: all, or one each where a scheduler starts
    several processes on a machine."""
    arrival_seconds: float = 300.0
    """How long to wait for hosts that have not arrived."""
    silence_seconds: float = 60.0
    """A host that has sent no heartbeat for so long counts as lost. One whose process ends is missed at once."""

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
