"""How long each host takes."""

import time

import pytest

from llm_jax.hosts.process_group import Hosts, ProcessGroup
from llm_jax.train.pace import Pace
from tests.hosts.connections import connections, everywhere

STEP_SECONDS = 1.0


class Told:
    """What a pace writes and says."""

    def __init__(self):
        self.records, self.said = [], []

    def write(self, kind: str, step: int, **values) -> None:
        self.records.append({"kind": kind, "step": step} | values)


def run(hosts, seconds: float, last: int, every: int) -> Told:
    """A loop whose batches take `seconds` each, on the clock, and whose steps take STEP_SECONDS, as is said."""
    told = Told()
    pace = Pace(hosts, told.write, told.said.append, every)
    batches = pace.timed(iter(map(lambda _: time.sleep(seconds), range(last))))
    for step in range(1, last + 1):
        next(batches)
        pace.on_metrics(step, {"seconds": STEP_SECONDS})
    pace.on_end(last, None, True)
    return told


def both(delays: dict[str, float]) -> list[Told]:
    with connections(len(delays)) as (opened, _):
        groups = [ProcessGroup(line, list(delays)) for line in opened]
        cases = list(zip(groups, delays.values(), strict=True))
        return everywhere(cases, lambda case: run(*case, last=6, every=3))


def test_the_host_that_all_wait_for_is_recorded_and_named_by_the_first():
    first, *others = both({"a": 0.0, "b": 0.4, "c": 0.01})
    assert [record["step"] for record in first.records] == [3, 6]
    for record in first.records:
        assert record["kind"] == "hosts" and record["slowest"] == 1
        assert record["seconds_min"] == record["seconds_max"] == pytest.approx(STEP_SECONDS)
        assert record["data_seconds_max"] >= 0.4 > 0.2 > record["data_seconds_median"] > record["data_seconds_min"]
    assert len(first.said) == 2 and "all hosts wait for host 1 (b), whose batches take" in first.said[0]
    assert all(other.records == other.said == [] for other in others)


def test_hosts_that_keep_pace_are_not_named():
    first, _ = both({"a": 0.001, "b": 0.001})
    assert len(first.records) == 2 and first.said == []


def test_one_process_writes_nothing():
    told = run(Hosts(), 0.0, 6, 3)
    assert told.records == told.said == []


def test_the_batches_come_through_and_end():
    pace = Pace(Hosts(), None, None, 1)
    assert list(pace.timed(iter([1, 2, 3]))) == [1, 2, 3]
