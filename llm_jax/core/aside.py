"""Runs optional work in a background thread. The caller never waits for it and never sees its errors."""

import contextlib
import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Aside:
    """Runs jobs one after another in a background thread.

    Args:
      name: name of the thread.
      failed: called in that thread with the exception that a job raises.
      room: maximum number of waiting jobs.
    """

    def __init__(self, name: str, failed: Callable[[BaseException], None] = lambda error: None, room: int = 1024):
        self._failed, self._room = failed, room
        # SimpleQueue.put is reentrant, so signal handlers can call `do`.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Job) -> bool:
        """Enqueues a job. Returns False, and drops the job, if `room` jobs are already waiting, for example because a
        disk or a terminal hangs."""
        if self._jobs.qsize() >= self._room:
            return False
        self._jobs.put(job)
        return True

    def close(self, seconds: float = 5.0) -> bool:
        """Waits at most `seconds` until all jobs are done. Returns whether they are."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # no job may end the thread, even by SystemExit
                with contextlib.suppress(Exception):
                    self._failed(error)
