"""How a process leaves the others."""

import signal
import time

import pytest

from llm_jax.hosts import process_group as group
from tests.hosts.connections import connections


class Ended(BaseException):
    """In place of the end of this process."""


@pytest.fixture
def exits(monkeypatch):
    """The exit codes of this process, whose handlers of signals come back after the test."""
    former, codes = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, []

    def end(code: int) -> None:
        codes.append(code)
        assert {signal.getsignal(number) for number in former} == {signal.SIG_IGN}
        raise Ended

    monkeypatch.setattr(group.os, "_exit", end)
    yield codes
    for number, handler in former.items():
        signal.signal(number, handler)


OPTIONS = "its options or its experiment ended it with code 2; its own output says why"


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (KeyboardInterrupt(), "it was interrupted", 130),
        (SystemExit(2), OPTIONS, 2),
        (SystemExit(None), OPTIONS.replace("2", "0"), 0),
        (SystemExit("no data"), "no data", 1),
        (group.Disagreement("they differ"), "they differ", 1),
    ],
)
def test_the_others_are_told_at_once_what_ended_a_host(exits, error, said, code):
    with connections(2) as (opened, ends):
        begun = time.monotonic()
        with pytest.raises(Ended):
            group._end_with(error, opened[1])
        assert time.monotonic() - begun < group._ECHO_SECONDS
        while not ends:
            time.sleep(0.01)
    assert exits == [code] and ends == [(0, f"host 1 (node1) stopped: {said}")]


def test_an_error_that_may_be_the_echo_of_a_lost_host_lets_the_line_speak_first(exits, monkeypatch):
    monkeypatch.setattr(group, "_ECHO_SECONDS", 0.5)
    with connections(2) as (opened, ends):
        begun = time.monotonic()
        with pytest.raises(Ended):
            group._end_with(RuntimeError("collective"), opened[1])
        assert time.monotonic() - begun > 0.5
        while not ends:
            time.sleep(0.01)
    assert exits == [1] and ends == [(0, "host 1 (node1) stopped: RuntimeError('collective')")]
