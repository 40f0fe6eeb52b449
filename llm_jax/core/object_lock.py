"""The lock of a run directory in an object store: an object that names its holder, since object stores have no locks.

The store lets only one process create the object. The holder rewrites it every few seconds. If a process on the same
machine sees that the holder has ended, it takes the lock at once. Otherwise a process takes the lock after it has seen
the object unchanged for a minute; no clocks are compared. A holder that was suspended for longer detects at its next
save that it has lost the run, and stops. Reading and replacing an object are not one atomic operation, so two processes
may take the lock at once. Both detect this within seconds, and the one whose object was replaced stops.
"""

import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from llm_jax.core import run_lock
from llm_jax.core.checks import check
from llm_jax.core.paths import create
from llm_jax.core.run_lock import Holder, RunHeld

_SETTLE_SECONDS = 2.0
"""Wait after a takeover, until another process that took the lock at the same time has written its object."""
_LOOK_SECONDS = 1.0


class ObjectLock:
    """Same interface as `RunLock`, with an object instead of a file."""

    def __init__(self, path: Path):
        self._path = path
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._held = False
        self._done = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, say: Callable[[str], None]) -> None:
        """See `RunLock.take`."""
        begun, contested = time.monotonic(), False
        seen, since = None, begun
        while not self._create():
            found, now = self._read(), time.monotonic()
            if found is None:
                continue
            holder = _holder(found)
            ended = None if holder is None else holder.has_ended()
            if ended or (found == seen and now - since > run_lock.STALE_SECONDS):
                self._remove(found)
                contested = True
                continue
            alive = ended is False or seen not in (None, found)
            again = run_lock.is_requeued(holder)
            if alive and (not again or now - begun > run_lock.PATIENCE_SECONDS):
                raise RunHeld(run_lock.refusal(self._path, holder))
            if found != seen:
                seen, since = found, now
            if not contested:
                say(f"{self._path.parent} was last in use by {holder or 'an unknown process'}; waiting for its end")
                contested = True
            time.sleep(_LOOK_SECONDS)
        self._held = True
        if contested:
            time.sleep(_SETTLE_SECONDS)
            self.check()
        self._done.clear()
        self._beating = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """See `RunLock.release`."""
        if not self._held:
            return
        self._done.set()
        if self._beating is not None:
            self._beating.join()
        with contextlib.suppress(OSError):  # without the deletion, other processes detect that this one has ended
            if self._is_ours():
                self._path.unlink(missing_ok=True)
        self._held = False

    def check(self) -> None:
        """See `RunLock.check`."""
        if not self._held or self._is_ours():
            return
        if (found := self._read()) is not None:
            self._held = False
            raise RunHeld(run_lock.lost(self._path, _holder(found)))
        check(
            self._create(),
            f"{self._path.parent} was deleted and is in use by another process: this process stops; give its run "
            "another --name",
        )

    def _create(self) -> bool:
        """Whether this process created the object. Also True if a first answer of the store was lost and its client
        repeated the request."""
        return create(self._path, self._content()) or self._is_ours()

    def _beat(self) -> None:
        while not self._done.wait(run_lock.BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the store may be unavailable for a while; `check` detects a lost lock
                if self._is_ours():
                    self._beats += 1
                    self._path.write_bytes(self._content())

    def _content(self) -> bytes:
        """The object's content, which differs between beats."""
        holder = dataclasses.asdict(Holder.this_process())
        return json.dumps({"token": self._token, "beats": self._beats, "holder": holder}).encode()

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _is_ours(self) -> bool:
        return _entries(self._read() or b"").get("token") == self._token

    def _remove(self, judged: bytes) -> None:
        """Removes the object if its content is still `judged`."""
        if self._read() == judged:
            self._path.unlink(missing_ok=True)


def _entries(content: bytes) -> dict:
    """The JSON object in `content`; empty if it is damaged."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _holder(content: bytes) -> Holder | None:
    return Holder.parsed(json.dumps(_entries(content).get("holder")))
