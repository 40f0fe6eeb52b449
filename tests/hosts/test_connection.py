"""What hosts tell one another, and how each learns that another is lost."""

import contextlib
import json
import socket
import threading
import time

import pytest

from llm_jax.hosts.connection import Connection
from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.process_info import ProcessInfo
from tests.hosts.connections import Ends, connections, everywhere, free_port


def _wait_for(condition, seconds: float = 10) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_all_hosts_get_all_values_in_the_order_of_hosts():
    with connections(4) as (opened, _):
        for name in ("first", "second", "first"):
            got = everywhere(
                opened, lambda connection, name=name: connection.gather(name, [connection.place.index, name])
            )
            assert got == [[[host, name] for host in range(4)]] * 4


def test_an_exchange_waits_for_the_last_host():
    with connections(2) as (opened, _):
        future = opened[0].start_gather("x", 0)
        time.sleep(0.2)
        assert not future.done()
        assert opened[1].gather("x", 1) == [0, 1] == future.result(5)


def test_a_long_value_arrives_whole():
    with connections(2) as (opened, _):
        text = "é" * 10**6
        assert everywhere(opened, lambda connection: connection.gather("text", text)) == [[text, text]] * 2


def test_a_telling_reaches_all_or_one_and_in_order():
    with connections(3) as (opened, _):
        heard = {connection.place.index: [] for connection in opened}
        for connection in opened:
            connection.hears["x"] = lambda host, value, index=connection.place.index: heard[index].append((host, value))
        for value in range(20):
            opened[2].tell("x", value)
        opened[1].tell("x", "only 0", to=0)
        everywhere(opened, lambda connection: connection.gather("done"))
        assert heard[1] == heard[2] == [(2, value) for value in range(20)]
        assert (1, "only 0") in heard[0] and len(heard[0]) == 21


def test_hosts_that_do_not_arrive_are_named():
    with connections(4, absent=(1, 3), arrival_seconds=1.0) as (opened, ends):
        _wait_for(lambda: len(ends) == len(opened))
        assert sorted(host for host, _ in ends) == [0, 2]
        expected = "hosts 1, 3 of 4 did not arrive within 1 seconds; arrived: host 0 (node0), host 2 (node2)"
        assert all(message.startswith(expected) for _, message in ends)


def test_no_host_is_missed_when_all_are_there():
    with connections(2, arrival_seconds=3) as (_, ends):
        time.sleep(3.5)
        assert ends == []


def test_host_0_that_is_not_there_is_named_with_its_address():
    place, begun = ProcessInfo(f"localhost:{free_port()}", 2, 1), time.monotonic()
    connection = Connection(place, HostsConfig(arrival_seconds=0.5), "node1")
    with pytest.raises(ValueError, match=rf"host 1 \(node1\) did not reach host 0 at {place.address} within 0.5 sec"):
        connection.open()
    assert time.monotonic() - begun < 5


def test_a_taken_port_is_an_error_with_its_remedy():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        place = ProcessInfo(f"localhost:{other.getsockname()[1]}", 2, 0)
        with pytest.raises(ValueError, match="another job may use the port; set --hosts.address"):
            Connection(place, HostsConfig(), "node0").open()


class Raw:
    """A host that only does what it is told to."""

    def __init__(self, connection: Connection, index: int, count: int, name: str = "raw"):
        self.socket = socket.create_connection(("localhost", connection.place.port))
        self.send({"hello": index, "count": count, "name": name})
        self.file = self.socket.makefile()

    def send(self, message: dict) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def until_end(self) -> str:
        return next(message["end"] for message in map(json.loads, self.file) if "end" in message)


def test_a_host_whose_process_ends_is_missed_at_once_by_all_others():
    with connections(3, absent=(2,)) as (opened, ends):
        other = Raw(opened[0], 2, 3)
        other.send({"gather": "x", "value": 2})
        assert everywhere(opened, lambda connection: connection.gather("x", connection.place.index)) == [[0, 1, 2]] * 2
        begun = time.monotonic()
        other.file.close()
        other.socket.close()
        _wait_for(lambda: len(ends) == 2)
        assert time.monotonic() - begun < 2
        assert {message for _, message in ends} == {"host 2 (raw) is lost: its process has ended"}


def test_a_host_that_is_silent_is_lost_after_the_stated_time():
    with connections(2, absent=(1,), silence_seconds=1.2) as (opened, ends):
        silent = Raw(opened[0], 1, 2)
        begun = time.monotonic()
        _wait_for(lambda: ends)
        assert 1 < time.monotonic() - begun < 4
        assert ends == [(0, "host 1 (raw) is lost: nothing was heard of it for 1.2 seconds")]
        silent.socket.close()


def test_hosts_that_send_heartbeats_are_not_lost():
    with connections(2, silence_seconds=3) as (_, ends):
        time.sleep(5)
        assert ends == []


def test_a_host_0_that_is_silent_or_ends_is_named():
    with socket.create_server(("", 0)) as server:
        ends = Ends()
        places = [ProcessInfo(f"localhost:{server.getsockname()[1]}", 3, index) for index in (1, 2)]
        opened = [Connection(place, HostsConfig(silence_seconds=1), "node", ends.of(place.index)) for place in places]
        threads = [threading.Thread(target=connection.open) for connection in opened]
        for thread in threads:
            thread.start()
        silent, closing = server.accept()[0], server.accept()[0]
        closing.close()
        _wait_for(lambda: len(ends) == 2)
        silent.close()
    said = [message for _, message in ends]
    assert said[0] == "host 0 (localhost) is lost: its process has ended"
    assert said[1] == "host 0 (localhost) is lost: nothing was heard of it for 1 seconds"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"[1]\n", b"\xff\n", b'{"gathered": "x", "values": []}\n']
)
def test_another_service_at_the_port_is_no_host_0(answer):
    with socket.create_server(("", 0)) as server:
        ends = Ends()
        place = ProcessInfo(f"localhost:{server.getsockname()[1]}", 2, 1)
        Connection(place, HostsConfig(), "node1", ends.of(1)).open()
        stranger = server.accept()[0]
        stranger.sendall(answer)
        _wait_for(lambda: ends)
        stranger.close()
    assert "host 0 (localhost) is lost: what it sends is nothing of llm-jax's host 0 (" in ends[0][1]


@pytest.mark.parametrize("message", [{"gather": "x"}, {"gather": []}, {"tell": "x", "value": 1, "to": 7}])
def test_a_host_that_sends_no_message_is_lost(message):
    with connections(2, absent=(1,)) as (opened, ends):
        broken = Raw(opened[0], 1, 2)
        broken.send(message)
        _wait_for(lambda: ends)
        broken.socket.close()
    assert "host 1 (raw) is lost: it sent what is not a message (" in ends[0][1]


def test_a_stranger_who_stays_does_not_delay_the_end():
    with contextlib.ExitStack() as stack:
        with connections(2) as (opened, _):
            stack.enter_context(socket.create_connection(("localhost", opened[0].place.port)))
            everywhere(opened, lambda connection: connection.leave())
            begun = time.monotonic()
        assert time.monotonic() - begun < 5


def test_a_host_that_fails_ends_the_others_with_its_words():
    with connections(3) as (opened, ends):
        opened[1].fail("the disk is full")
        _wait_for(lambda: len(ends) == 2)
        assert sorted(ends) == [(0, "host 1 (node1) stopped: the disk is full"), (2, ends[1][1])]


@pytest.mark.parametrize(("index", "count"), [(1, 2), (5, 2), (0, 2), (1, 3)])
def test_a_host_that_does_not_belong_is_refused_and_disturbs_nobody(index, count):
    with connections(2) as (opened, ends):
        stranger = Raw(opened[0], index, count, "lost")
        assert f"host {index} of {count} (lost) has no place among the 2 hosts here" in stranger.until_end()
        assert everywhere(opened, lambda connection: connection.gather("x", 1)) == [[1, 1]] * 2
        assert ends == []


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"hello": "x"}\n', b'{"hello": 0}\n', b"\n", b""]
)
def test_noise_on_the_port_disturbs_nobody(noise):
    with connections(2) as (opened, ends):
        with socket.create_connection(("localhost", opened[0].place.port)) as stranger:
            stranger.sendall(noise)
        time.sleep(0.1)
        assert everywhere(opened, lambda connection: connection.gather("x", 1)) == [[1, 1]] * 2
        assert ends == []


def test_hosts_that_leave_together_are_not_missed():
    with connections(3) as (opened, ends):
        everywhere(opened, lambda connection: connection.leave())
        for connection in opened[1:]:
            connection._loop.call_soon_threadsafe(connection._writer.close)
        time.sleep(0.3)
        assert ends == []
