"""All hosts stop after the same step, whichever was asked to, without talking during the steps.

The host that is asked tells all. Each answers, from the thread of its connection, with the last step its loop has
dispatched, and from then on its loop waits after the next one for the decision. That is the largest of the answers plus
one, which no loop can have passed.

jax's `reached_preemption_sync_point` agrees in this way too, but it looks once a second, knows SIGTERM alone, takes its
handler for itself, and does not tell which host was asked.
"""

import threading
from typing import Any

from llm_jax.hosts.connection import Connection

_ASK, _AT = "stop", "stop at"


class AgreedStop:
    """The decision to stop. It is made once in the life of a connection."""

    def __init__(self, connection: Connection):
        self._line = connection
        self._lock = threading.Lock()
        self._step = 0
        self._answered: int | None = None
        self._decided = threading.Event()
        self._last = 0
        connection.hears[_ASK] = self._asked

    def ask(self) -> None:
        """Asks all hosts to stop soon; safe in a signal handler."""
        self._line.tell(_ASK, None)

    def reached(self, step: int) -> bool:
        """Whether the loop, which has dispatched `step`, must stop after it; to be called after every step."""
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
