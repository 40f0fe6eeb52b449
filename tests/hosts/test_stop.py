"""All hosts stop after the same step."""

import random
import threading
import time

import pytest

from llm_jax.hosts.stop import AgreedStop
from tests.hosts.connections import connections, everywhere


def _loop(stop: AgreedStop, asks_at: int | None, seconds: float, first: int = 0) -> int:
    """A training loop of its own pace; the step after which it stopped."""
    draw = random.Random(seconds)
    for step in range(first + 1, first + 100_000):
        time.sleep(draw.uniform(0, 2 * seconds))
        if step == asks_at:
            stop.ask()
        if stop.reached(step):
            return step
    raise AssertionError("never stopped")


@pytest.mark.parametrize("seed", range(4))
def test_hosts_of_different_pace_stop_after_the_same_step(seed):
    draw = random.Random(seed)
    paces = [draw.choice([1e-5, 1e-4, 1e-3, 5e-3]) for _ in range(3)]
    with connections(3) as (opened, _):
        stops = [AgreedStop(connection) for connection in opened]
        asks = {draw.randrange(3): draw.randint(1, 50)}
        cases = [(stop, asks.get(host), pace) for host, (stop, pace) in enumerate(zip(stops, paces, strict=True))]
        stopped = everywhere(cases, lambda case: _loop(*case))
    assert len(set(stopped)) == 1 and stopped[0] >= max(asks.values())


def test_all_may_be_asked_at_once_and_twice():
    with connections(3) as (opened, _):
        stops = [AgreedStop(connection) for connection in opened]
        for stop in stops:
            stop.ask()
            stop.ask()
        stopped = everywhere(stops, lambda stop: _loop(stop, None, 1e-4))
    assert len(set(stopped)) == 1


def test_a_request_before_the_loop_begins_stops_it_at_once():
    with connections(2) as (opened, _):
        stops = [AgreedStop(connection) for connection in opened]
        stops[1].ask()
        time.sleep(0.3)
        assert everywhere(stops, lambda stop: _loop(stop, None, 0, first=500)) == [501, 501]


def test_nobody_waits_for_a_loop_that_is_not_at_a_step():
    """The answers come from the connections' threads: a host inside a step, which may need others, delays no one."""
    with connections(2) as (opened, _):
        stops = [AgreedStop(connection) for connection in opened]
        assert not stops[0].reached(7)
        stops[0].ask()
        results = []
        thread = threading.Thread(target=lambda: results.append([stops[0].reached(step) for step in (8, 9)]))
        time.sleep(0.3)
        thread.start()
        thread.join(5)
        assert results == [[True, True]]  # host 1 has not made a step yet
        assert stops[1].reached(8)


def test_nothing_is_stopped_unasked():
    with connections(2) as (opened, _):
        stops = [AgreedStop(connection) for connection in opened]
        assert not any(stop.reached(step) for step in range(1, 1000) for stop in stops)
