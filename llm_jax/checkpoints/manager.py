"""Writes checkpoints asynchronously and atomically, and keeps the newest and the best ones."""

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
from llm_jax.checkpoints.record import CheckpointRecord, Identity, SavedLeaf, describe, root_cause
from llm_jax.checkpoints.restore import FROZEN, RECORD, STATE, Restored, ranked
from llm_jax.core.files import remove, unused
from llm_jax.core.paths import is_object

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one training run. It is the only writer of their directory.

    A save copies the state to the host and continues in the background. A checkpoint exists only when it is complete: a
    process killed before that leaves a temporary directory, which the next start removes. Call `close` (or use `with`)
    before exit. In a job of several processes every process must make the same calls. `data` and `loop` are taken from
    the first process.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, run: Identity):
        """Opens or creates `directory`.

        Raises:
          ValueError: if the directory cannot be written, or its checkpoints have another tokenizer.
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
        self._frozen: dict[str, SavedLeaf] | None = None
        self._unfinished: int | None = None
        self._closed = False
        self._orbax = self._open_orbax()

    @property
    def latest_step(self) -> int | None:
        """The newest step with a complete checkpoint on disk. A save in progress does not count."""
        return max(restore.saved_steps(self._directory), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest `best_metric` among checkpoints on disk; None if none has a value."""
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
        """Starts a save, after waiting for a save in progress. Returns when `state` may be donated or overwritten.

        A step that is already saved is not saved again, because a run reaches each step with only one state.

        Args:
          state: tree of jax.Array with any sharding. A field `frozen` of it, which must be the same at every step, is
            stored by the first save only, which waits until it is written.
          data: state of the data iterator: dicts, lists, str, int, float, bool, None, bytes.
          loop: other state that the loop needs to resume, of the same types.
          metrics: held-out metrics at this step by name. Without `best_metric` it cannot be a best checkpoint.

        Returns:
          False if the step was already saved.

        Raises:
          OSError: if this or the previous save could not be written (full disk). Earlier checkpoints are unchanged.
          ValueError: for content that cannot be stored.
        """
        if self._is_deleted():
            self._begin_again()
        self.wait()
        if step in self._orbax.all_steps():
            return False
        own, shared = restore.split(state)
        self._remove_temporaries()
        self._unfinished = step
        try:
            leaves = describe(own) | self._write_frozen(shared)
        except Exception as error:
            raise self._failure(error) from error
        record = CheckpointRecord(step, self._run, dict(data), dict(loop), dict(metrics), leaves).to_json()
        items = {STATE: ocp.args.StandardSave(own), RECORD: ocp.args.JsonSave(record)}
        # Before the save: the retention policy, which may run within it, ranks this checkpoint by them.
        self._metrics[step] = metrics
        try:
            return self._orbax.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Waits until the save in progress is on disk.

        Raises:
          OSError: if the save could not be written. Earlier checkpoints are unchanged.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        self._unfinished = None

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """Restores `step`, or by default the newest checkpoint that is not damaged; None if there are no checkpoints.

        Newer, damaged checkpoints are renamed to `corrupt-<step>`, so that their steps can be saved again. See
        `restore.restore_state` for arguments and errors.
        """
        self.wait()
        restored = restore.restore_state(self._directory, abstract_state, self._run.tokenizer, step)
        if restored:
            # `restore_state` has compared the arrays with the digests of the record.
            _, shared = restore.split(restored.state)
            self._frozen = describe({FROZEN: shared}) if shared else None
        if restored and restored.skipped:
            self._set_aside([damaged for damaged, _ in restored.skipped], "corrupt")
            _log.warning("resuming from checkpoint %d", restored.step)
        return restored

    def go_back(self, step: int) -> list[int]:
        """Renames the checkpoints after `step` to `later-<step>`, newest first, so that their steps can be saved again.
        Returns their steps. If the process is killed meanwhile, the earlier ones keep their names."""
        self.wait()
        later = [other for other in reversed(restore.saved_steps(self._directory)) if other > step]
        self._set_aside(later, "later")
        return later

    def close(self) -> None:
        """Waits for a save in progress, then ends the background threads. May be called twice."""
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
                f"checkpoint directory {self._directory} cannot be written ({error.strerror or error}): make it "
                "writable, or use another run directory"
            ) from error

    def _write_frozen(self, shared: Mapping[str, Any]) -> dict[str, SavedLeaf]:
        """Writes the frozen models, unless that is done. Returns the descriptions of their arrays."""
        if not shared:
            return {}
        if self._frozen is None:
            leaves = describe({FROZEN: dict(shared)})
            with ocp.StandardCheckpointer() as writer:
                # A folder that no checkpoint of this run was restored with is of a start that saved no checkpoint.
                writer.save(self._directory / FROZEN, dict(shared), force=True)
                writer.wait_until_finished()
            self._frozen = leaves
        return self._frozen

    def _is_deleted(self) -> bool:
        """Whether the opened directory was deleted. A write in progress may have created a new one of the same name. In
        an object store folders are only parts of names, so there the answer is always False."""
        if self._opened is None:
            return False
        try:
            gone = not os.path.samestat(os.fstat(self._opened), os.stat(self._directory))
        except FileNotFoundError:
            gone = True
        if jax.process_count() > 1:
            gone = bool(multihost_utils.broadcast_one_to_all(np.asarray(gone)))  # before the first process creates it
        return gone

    def _begin_again(self) -> None:
        """Reopens orbax, which would remember the checkpoints of a deleted directory. A save in progress is lost."""
        _log.warning("%s was deleted; the next checkpoint is written to a new one", self._directory)
        with contextlib.suppress(OSError):
            self.wait()
        with contextlib.suppress(Exception):
            self._orbax.close()
        if self._opened is not None:
            os.close(self._opened)
        self._metrics.clear()
        self._frozen = None
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
                with contextlib.suppress(OSError):  # a failed save may still be writing into it
                    remove(path)

    def _temporaries(self) -> list[Path]:
        """Folders left by incomplete saves."""
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
        for _ in range(3):  # each failed part of the save raises once, and the manager is unusable until all have
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
    """Free bytes on the disk of a directory, which may have been deleted."""
    return shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists())).free


@dataclasses.dataclass(frozen=True)
class _Retention:
    """Orbax preservation policy: keeps the newest and the best. `Checkpoints` shares and fills `metrics`."""

    config: CheckpointConfig
    metrics: Mapping[int, Mapping[str, float]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = ranked({step: self.metrics.get(step, {}) for step in steps}, self.config.best_metric)
        kept = {*steps[-self.config.keep_last :], *best[: self.config.keep_best]}
        return [checkpoint.step in kept for checkpoint in checkpoints]
