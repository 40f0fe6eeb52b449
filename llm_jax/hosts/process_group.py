"""The processes of a job as training uses them, and how a process joins the job."""

import contextlib
import ctypes
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from llm_jax.core.checks import check
from llm_jax.hosts import facts
from llm_jax.hosts.connection import Connection, say_last
from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.process_info import find
from llm_jax.hosts.stop import AgreedStop

_ECHO_SECONDS = 2.0
_PACE = "pace"


class Disagreement(ValueError):
    """The processes differ in facts that must be equal. Raised in all of them."""


class Hosts:
    """The processes of a job. This class is for a single process, `ProcessGroup` for several."""

    leads = True
    """Whether this is the process that writes records, card, samples and report."""
    count = 1
    names = ("this host",)
    """Name of the machine of each process."""

    def __init__(self):
        self._stop = False

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """The values of all processes under this name, by process index. Waits for all processes."""
        return [value]

    def agree(self, what: str, found: Mapping[str, str]) -> None:
        """Checks that `found` is equal in all processes.

        Raises:
          Disagreement: in all processes, if it is not. The message gives the differences of each process.
        """

    @contextlib.contextmanager
    def leader_first(self, what: str) -> Iterator[None]:
        """The leader runs the block first. The others run it after the leader has finished."""
        yield

    def ask_to_stop(self) -> None:
        """Makes `must_stop` true in all processes, after the same step."""
        self._stop = True

    def must_stop(self, step: int) -> bool:
        """Whether to stop after `step`. Must be called after every step. Needs no communication."""
        return self._stop

    def report_pace(self, value: Any) -> None:
        """Sends the step times of this process to the leader, without waiting."""

    def on_pace(self, hear: Callable[[int, Any], None]) -> None:
        """In the leader, calls `hear(host, value)` in another thread for each `report_pace` of a process."""


class ProcessGroup(Hosts):
    """Several processes, connected through the hub."""

    def __init__(self, connection: Connection, names: list[str]):
        self._line, self.names = connection, tuple(names)
        self.count, self.leads = connection.place.count, connection.place.index == 0
        self._agreed_stop = AgreedStop(connection)
        connection.hears[_PACE] = lambda host, value: None

    def gather(self, name: str, value: Any = None) -> list[Any]:
        return self._line.gather(name, value)

    def agree(self, what: str, found: Mapping[str, str]) -> None:
        # The facts themselves are sent only if their digests differ.
        if len(set(self.gather(f"digest of {what}", facts.digest(found)))) > 1:
            everyone = self.gather(what, dict(found))
            differing = facts.differences(list(self.names), everyone)
            raise Disagreement(f"the hosts do not agree on the {what}; compared with host 0:\n{differing}")

    @contextlib.contextmanager
    def leader_first(self, what: str) -> Iterator[None]:
        if not self.leads:
            self.gather(what)
        yield
        if self.leads:
            self.gather(what)

    def ask_to_stop(self) -> None:
        self._agreed_stop.ask()

    def must_stop(self, step: int) -> bool:
        return self._agreed_stop.reached(step)

    def report_pace(self, value: Any) -> None:
        self._line.tell(_PACE, value, to=0)

    def on_pace(self, hear: Callable[[int, Any], None]) -> None:
        self._line.hears[_PACE] = hear


@contextlib.contextmanager
def joined(config: HostsConfig) -> Iterator[Hosts]:
    """Context manager that joins the other processes, and leaves together with them. Enter it before the first use of
    a device. For a single process it does nothing.

    An error inside ends this process and all others, so that none waits for another forever.

    Raises:
      ValueError: if address, count or index is not known, or process 0 cannot be reached.
    """
    place = find(config)
    if place is None:
        yield Hosts()
        return
    # SLURM's name of the node, which other SLURM commands accept.
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    connection = Connection(place, config, name)
    connection.open()
    try:
        group = ProcessGroup(connection, connection.gather("names", name))
        group.agree("code", facts.code())
        _start_jax(connection, config)
        kinds = {"devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"}
        group.agree("devices of a host", kinds)
        yield group
        connection.leave()
    except BaseException as error:
        _end_with(error, connection)
    jax.distributed.shutdown()
    connection.close()


def _start_jax(connection: Connection, config: HostsConfig) -> None:
    """Initialises jax.distributed, at a free port of process 0."""
    place = connection.place
    port = connection.gather("port", _free_port() if place.index == 0 else None)[0]
    host = f"[{place.host}]" if ":" in place.host else place.host
    # The connection handles signals and lost processes. jax's preemption service would replace the SIGTERM handler, and
    # jax's heartbeats end a process without naming the lost one. They remain, with a longer timeout, as a fallback.
    jax.config.update("jax_enable_preemption_service", False)
    _delay_abort()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"{host}:{port}",
        place.count,
        place.index,
        place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(config.arrival_seconds) + 1,
        heartbeat_timeout_seconds=int(3 * config.silence_seconds) + 1,
    )
    check(
        jax.process_count() == place.count and jax.process_index() == place.index,
        f"this process is host {place.index} of {place.count}, but jax numbers it {jax.process_index()} of "
        f"{jax.process_count()}: set --hosts.index to that of jax",
    )


def _delay_abort() -> None:
    """Delays jax's abort, so that the connection can report which process is lost. If process 0, which runs jax's
    service, is lost, jax aborts every other process within a millisecond. With `sleep` as its SIGABRT handler, the
    aborting thread first sleeps for as many seconds as SIGABRT's number. The connection's thread ends the process
    before that."""
    try:
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    except (OSError, TypeError, AttributeError):
        return  # a C library without these functions: the process still ends, with jax's message alone
    libc.signal(signal.SIGABRT, sleep)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _end_with(error: BaseException, connection: Connection) -> None:
    """Ends this process because of `error`. A normal exit would wait for processes that wait for this one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second signal would end this process before the others are notified
    if not isinstance(error, KeyboardInterrupt | SystemExit | Disagreement):
        # A failed collective is usually the consequence of a lost process. In that case the connection reports which
        # one, and ends this process, within this time.
        time.sleep(_ECHO_SECONDS)
    text, code = _last_words(error)
    say_last(f"llm-jax: {text}")
    connection.fail(text)
    os._exit(code)


def _last_words(error: BaseException) -> tuple[str, int]:
    """The message for all processes, and the exit code. A traceback is printed only by this process."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted", 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        code = error.code or 0
        why = f"its options or its experiment ended it with code {code}; its own output says why"
        return (why, code) if isinstance(code, int) else (str(code), 1)
    if isinstance(error, ValueError | OSError | FloatingPointError):  # a message to the user, as in cli.main
        return str(error), 1
    traceback.print_exception(error)
    return repr(error), 1
