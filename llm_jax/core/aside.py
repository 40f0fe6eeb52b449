"""Work that a run can do without, in a thread of its own: whoever hands it over never waits and never sees an error."""

import contextlib
import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Aside:
    """Runs jobs one after another in a thread of its own.

    Args:
      name: of the thread.
      failed: called in that thread with what a job raises.
      room: number of jobs that may wait.
    """

    def __init__(self, name: str, failed: Callable[[BaseException], None] = lambda error: None, room: int = 1024):
        self._failed, self._room = failed, room
        # A SimpleQueue may be put to from a signal handler too.
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Job) -> bool:
        """Hands over a job. False where too many wait already, as behind a disk or a terminal that hangs: the job is
        not done."""
        if self._jobs.qsize() >= self._room:
            return False
        self._jobs.put(job)
        return True

    def close(self, seconds: float = 5.0) -> bool:
        """Waits until all jobs are done, `seconds` at most. Whether they are."""
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:  # no job may end the thread, not by SystemExit either
                with contextlib.suppress(Exception):
                    self._failed(error)
