"""The hosts of a job as training uses them, and how a process joins."""

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
    """The hosts are not the same; raised on all of them."""


class Hosts:
    """The hosts of a job. This is a single process, with which everything is agreed at once; `Group` is several."""

    leads = True
    """Whether this host writes what only one may write."""
    count = 1
    names = ("this host",)
    """Names of the machines, by host."""

    def __init__(self):
        self._stop = False

    def gather(self, name: str, value: Any = None) -> list[Any]:
        """The values that all hosts give under this name, by host. Waits for all of them."""
        return [value]

    def agree(self, what: str, found: Mapping[str, str]) -> None:
        """
        Raises:
          Disagreement: on all hosts, if `found` is not the same on all; it says which host differs in what.
        """

    @contextlib.contextmanager
    def leader_first(self, what: str) -> Iterator[None]:
        """The block is run by the leader, and when it is through by all others."""
        yield

    def ask_to_stop(self) -> None:
        """Makes `must_stop` true on all hosts, after the same step."""
        self._stop = True

    def must_stop(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked after every step. Costs no communication."""
        return self._stop

    def report_pace(self, value: Any) -> None:
        """Sends this host's figures to the leader, without waiting."""

    def on_pace(self, hear: Callable[[int, Any], None]) -> None:
        """At the leader, `hear(host, value)` is called in another thread with what `report_pace` sends."""


class ProcessGroup(Hosts):
    """Several processes, connected by a connection."""

    def __init__(self, connection: Connection, names: list[str]):
        self._line, self.names = connection, tuple(names)
        self.count, self.leads = connection.place.count, connection.place.index == 0
        self._agreed_stop = AgreedStop(connection)
        connection.hears[_PACE] = lambda host, value: None

    def gather(self, name: str, value: Any = None) -> list[Any]:
        return self._line.gather(name, value)

    def agree(self, what: str, found: Mapping[str, str]) -> None:
        # The facts themselves travel only where there is something to tell.
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
    """Joins the other processes, before the first use of a device; leaves with them. Does nothing for a single process.

    An error inside ends this process, and tells the others, which end as well: none is left waiting for another.

    Raises:
      ValueError: if the place of this process is not known, or host 0 cannot be reached.
    """
    place = find(config)
    if place is None:
        yield Hosts()
        return
    # SLURM's name of the node, which is what its other commands take.
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
    """Connects jax's own processes, at a port that host 0 finds free."""
    place = connection.place
    port = connection.gather("port", _free_port() if place.index == 0 else None)[0]
    host = f"[{place.host}]" if ":" in place.host else place.host
    # Signals and lost hosts are the connection's: jax's service would take SIGTERM for itself, and its heartbeats end a
    # process without a word about which host is missing. They stay, slower, should the connection fail.
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
        f"this process is host {place.index} of {place.count} and jax takes it for {jax.process_index()} of "
        f"{jax.process_count()}: the platform has its own order; give --hosts.index in that",
    )


def _delay_abort() -> None:
    """Lets the connection say which host is lost. Without host 0, which runs jax's service, jax aborts every other
    process within a millisecond. Now the thread that does so first sleeps for as many seconds as SIGABRT's number; the
    connection's thread ends the process before."""
    try:
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    except (OSError, TypeError, AttributeError):
        return  # a C library without these: the process still ends, and jax's message is all that it says
    libc.signal(signal.SIGABRT, sleep)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _end_with(error: BaseException, connection: Connection) -> None:
    """Ends this process because of `error`; the interpreter's own end would wait for hosts that wait for this one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second one would end this process before the others are told
    if not isinstance(error, KeyboardInterrupt | SystemExit | Disagreement):
        # A collective that fails is the echo of a host that is gone: the connection presently says which, and ends the
        # process.
        time.sleep(_ECHO_SECONDS)
    text, code = _last_words(error)
    say_last(f"llm-jax: {text}")
    connection.fail(text)
    os._exit(code)


def _last_words(error: BaseException) -> tuple[str, int]:
    """What all hosts are to read, and the exit code; a traceback is for this one alone."""
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
