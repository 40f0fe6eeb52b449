"""Writing checkpoints: asynchronous, atomic, the last ones and the best ones kept."""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from llm_jax.checkpoints import restore
from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.checkpoints.noise import quiet_orbax
from llm_jax.checkpoints.record import Identity, Record, describe, root_cause
from llm_jax.checkpoints.restore import RECORD, STATE, Restored, ranked
from llm_jax.core.files import remove, unused
from llm_jax.core.paths import is_object

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training run; the only writer of its directory.

    A save copies the state to the host, then goes on in the background. It counts once it is whole: a process killed
    before leaves a temporary directory, which the next start removes. Call `close` (or use `with`) before exit.
    In a job of several processes every process makes the same calls; `data` and `loop` are those of the first.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, run: Identity):
        """Opens or makes `directory`.

        Raises:
          ValueError: if the directory cannot be written, or its checkpoints were made with another tokenizer.
        """
        quiet_orbax()
        self._directory = directory.absolute()
        self._config = config
        self._run = run
        self._metrics: dict[int, Mapping[str, float]] = {}
        for step, record in restore.readable_records(self._directory).items():
            restore.check_tokenizer(self._directory, record, run.tokenizer)
            self._metrics[step] = record.metrics
        self._prepare_directory()
        self._unfinished: int | None = None
        self._closed = False
        self._orbax = self._open_orbax()

    @property
    def latest_step(self) -> int | None:
        """Newest step that is whole on disk; a save still under way does not count."""
        return max(restore.saved_steps(self._directory), default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the lowest `best_metric` among those on disk, or None if none was saved with a value."""
        found = {step: self._metrics.get(step, {}) for step in restore.saved_steps(self._directory)}
        return next(iter(ranked(found, self._config.best_metric)), None)

    def save(
        self,
        step: int,
        state: Any,
        data: Mapping[str, Any],
        loop: Mapping[str, Any],
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> bool:
        """Starts saving; returns once `state` may be donated or overwritten. Waits for a save still under way.

        A step that is saved already is left as it is, since a run reaches each step with one state only.

        Args:
          state: tree of jax.Array, sharded in any way.
          data: state of the data iterator: dicts, lists, str, int, float, bool, None, bytes.
          loop: whatever else the loop needs to go on, of the same types.
          metrics: held-out figures at this step by name; without `best_metric` it is none of the best.

        Returns:
          False if the step was saved already.

        Raises:
          OSError: if this or the previous save could not be written (full disk); earlier checkpoints are untouched.
          ValueError: for content that cannot be stored.
        """
        if self._is_deleted():
            self._begin_again()
        self.wait()
        if step in self._orbax.all_steps():
            return False
        record = Record(step, self._run, dict(data), dict(loop), dict(metrics), describe(state)).to_json()
        items = {STATE: ocp.args.StandardSave(state), RECORD: ocp.args.JsonSave(record)}
        self._remove_temporaries()
        self._metrics[step] = metrics
        self._unfinished = step
        try:
            return self._orbax.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns once everything saved is on disk.

        Raises:
          OSError: if the save could not be written; earlier checkpoints are untouched.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._unfinished = None

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Reads `step`, else the newest checkpoint that is not damaged; None if there is none.

        Newer, damaged checkpoints are set aside as `corrupt-<step>`, so that their steps can be saved again.
        `restore.restore_state` says what it takes and raises.
        """
        self.wait()
        restored = restore.restore_state(self._directory, abstract_state, self._run.tokenizer, step)
        if restored and restored.skipped:
            self._set_aside([damaged for damaged, _ in restored.skipped], "corrupt")
            _log.warning("resuming from checkpoint %d", restored.step)
        return restored

    def go_back(self, step: int) -> list[int]:
        """Sets the checkpoints after `step` aside as `later-<step>`, the newest first, so that their steps can be saved
        again; returns their steps. A process killed meanwhile leaves the earlier of them as they were."""
        self.wait()
        later = [other for other in reversed(restore.saved_steps(self._directory)) if other > step]
        self._set_aside(later, "later")
        return later

    def close(self) -> None:
        """Waits for the save under way, then ends the background threads. May be called twice."""
        try:
            self.wait()
        finally:
            self._orbax.close()
            if not self._closed and self._opened is not None:
                os.close(self._opened)
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._opened = None if is_object(self._directory) else os.open(self._directory, os.O_RDONLY)
            self._remove_temporaries()
        except OSError as error:
            raise ValueError(
                f"checkpoint directory {self._directory} cannot be written ({error.strerror or error}): "
                "make it writable, or choose another place for the run"
            ) from error

    def _is_deleted(self) -> bool:
        """Whether the directory that was opened is gone; a write under way may have made another of its name. In an
        object store a folder is only a part of names: there it is never gone."""
        if self._opened is None:
            return False
        try:
            gone = not os.path.samestat(os.fstat(self._opened), os.stat(self._directory))
        except FileNotFoundError:
            gone = True
        if jax.process_count() > 1:
            gone = bool(multihost_utils.broadcast_one_to_all(np.asarray(gone)))  # before the first process makes it
        return gone

    def _begin_again(self) -> None:
        """Orbax remembers the checkpoints of a directory that is gone. A save under way is lost with it."""
        _log.warning("%s was deleted; the next checkpoint is written to a new one", self._directory)
        with contextlib.suppress(OSError):
            self.wait()
        with contextlib.suppress(Exception):
            self._orbax.close()
        if self._opened is not None:
            os.close(self._opened)
        self._metrics.clear()
        self._unfinished = None
        self._prepare_directory()
        self._orbax = self._open_orbax()

    def _open_orbax(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Retention(self._config, self._metrics),
            create=False,
            lightweight_initialize=True,
            save_root_metadata=False,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _remove_temporaries(self) -> None:
        if jax.process_index() == 0:
            for path in self._temporaries():
                with contextlib.suppress(OSError):  # writes of a failed save may still be under way in it
                    remove(path)

    def _temporaries(self) -> list[Path]:
        """What saves that did not end have left."""
        if not is_object(self._directory):
            return list(self._directory.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"))
        folders = restore.step_folders(self._directory) if self._directory.is_dir() else []
        return [path for path in folders if int(path.name) not in restore.saved_steps(self._directory)]

    def _set_aside(self, steps: Sequence[int], why: str) -> None:
        if jax.process_index() == 0:
            for step in steps:
                (self._directory / str(step)).rename(unused(self._directory / f"{why}-{step}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints set aside")
        for step in steps:
            self._metrics.pop(step, None)
        self._orbax.reload()

    def _failure(self, error: Exception) -> OSError:
        free = "" if is_object(self._directory) else f", where {_free_bytes(self._directory):,} bytes were free"
        for _ in range(3):  # every part of the save that failed raises once; a manager with errors left is of no use
            with contextlib.suppress(Exception):
                self._orbax.close()
        if self._unfinished is not None:
            self._metrics.pop(self._unfinished, None)
        self._remove_temporaries()
        self._orbax = self._open_orbax()
        return OSError(
            f"checkpoint {self._unfinished} could not be written to {self._directory}{free}: "
            f"{root_cause(error)}\nThe newest whole checkpoint is that of step {self.latest_step}. Make room "
            "(or lower keep_last and keep_best), then give the same command again: it resumes from there."
        )


def _free_bytes(directory: Path) -> int:
    """On the disk of a directory, which may be gone."""
    return shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free


@dataclasses.dataclass(frozen=True)
class _Retention:
    """Orbax's preservation policy: the newest and the best. `metrics` is shared with `Checkpoints`, which fills it."""

    config: CheckpointConfig
    metrics: Mapping[int, Mapping[str, float]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = ranked({step: self.metrics.get(step, {}) for step in steps}, self.config.best_metric)
        kept = {*steps[-self.config.keep_last :], *best[: self.config.keep_best]}
        return [checkpoint.step in kept for checkpoint in checkpoints]
