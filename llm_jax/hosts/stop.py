"""Stops all processes after the same step, whichever received the request, without communication in normal steps.

The process that receives the request sends it to all. Each answers, from the thread of its connection, with the last
step that its loop has dispatched. Its loop then waits, after the next step, for the decision. The decision is the
largest answer plus one, which no loop can have passed.

jax's `reached_preemption_sync_point` uses the same protocol. But it polls once a second, handles only SIGTERM, replaces
its handler, and does not tell which process received the signal.
"""

import threading
from typing import Any

from llm_jax.hosts.connection import Connection

_ASK, _AT = "stop", "stop at"


class AgreedStop:
    """The decision to stop. It is made at most once per connection."""

    def __init__(self, connection: Connection):
        self._line = connection
        self._lock = threading.Lock()
        self._step = 0
        self._answered: int | None = None
        self._decided = threading.Event()
        self._last = 0
        connection.hears[_ASK] = self._asked

    def ask(self) -> None:
        """Asks all processes to stop soon. Safe in a signal handler."""
        self._line.tell(_ASK, None)

    def reached(self, step: int) -> bool:
        """Whether the loop, which has dispatched `step`, must stop after it. Must be called after every step."""
        # Under one lock with `_asked`: either the answer includes this step, or this call sees the answer and waits.
        with self._lock:
            self._step, answered = step, self._answered
        if answered is None or step <= answered:
            return False
        self._decided.wait()
        return step >= self._last

    def _asked(self, host: int, value: Any) -> None:
        with self._lock:
            if self._answered is not None:
                return
            self._answered = self._step
        self._line.start_gather(_AT, self._answered).add_done_callback(lambda steps: self._decide(steps.result()))

    def _decide(self, steps: list[int]) -> None:
        self._last = max(steps) + 1
        self._decided.set()
