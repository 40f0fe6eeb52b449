"""Writing checkpoints: asynchronous, atomic, the last ones and the best ones kept."""

import contextlib
import dataclasses
import itertools
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from llm_jax.checkpoints import restore
from llm_jax.checkpoints.noise import quiet_orbax
from llm_jax.checkpoints.record import Record, describe, root_cause
from llm_jax.checkpoints.restore import RECORD, STATE, Restored
from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass

_log = logging.getLogger(__name__)


@configclass
class CheckpointConfig:
    """When to save and what to keep."""

    every: int = 500
    """Steps between two saves."""
    keep_last: int = 2
    """Newest checkpoints kept. With 1 there is nothing to fall back to if that one is damaged."""
    keep_best: int = 1
    """Checkpoints of lowest evaluation loss kept beside the newest; one saved without a loss is never among them."""
    best_metric: str = "validation/loss"
    """Name, in the metrics given to `save`, of the loss that `keep_best` goes by."""

    def __post_init__(self) -> None:
        check_positive(every=self.every, keep_last=self.keep_last)
        check_not_negative(keep_best=self.keep_best)
        check(bool(self.best_metric) or not self.keep_best, "best_metric is empty: name a metric or set keep_best to 0")


class Checkpoints:
    """The checkpoints of one training run; the only writer of its directory.

    A save copies the state to the host, then goes on in the background. It counts once it is whole: a process killed
    before leaves a temporary directory, which the next start removes. Call `close` (or use `with`) before exit.
    In a job of several processes every process makes the same calls; `data` and `loop` are those of the first.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, tokenizer_digest: str, experiment_text: str):
        """Opens or makes `directory`.

        Raises:
          ValueError: if the directory cannot be written, or its checkpoints were made with another tokenizer.
        """
        quiet_orbax()
        self._directory = directory.absolute()
        self._config = config
        self._tokenizer_digest = tokenizer_digest
        self._experiment = experiment_text
        self._losses: dict[int, float] = {}
        for step, record in restore.readable_records(self._directory).items():
            restore.check_tokenizer(self._directory, record, tokenizer_digest)
            self._note_loss(step, record.loss)
        self._prepare_directory()
        self._unfinished: int | None = None
        self._orbax = self._open_orbax()

    @property
    def latest_step(self) -> int | None:
        """Newest step that is whole on disk; a save still under way does not count."""
        return max(restore.saved_steps(self._directory), default=None)

    @property
    def best_step(self) -> int | None:
        """Step of lowest evaluation loss among those on disk, or None if none was saved with a loss."""
        steps = [step for step in restore.saved_steps(self._directory) if step in self._losses]
        return next(iter(_ranked(steps, self._losses)), None)

    def save(
        self,
        step: int,
        state: Any,
        data: Mapping[str, Any],
        loop: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts saving; returns once `state` may be donated or overwritten. Waits for a save still under way.

        A step that is saved already is left as it is, since a run reaches each step with one state only.

        Args:
          state: tree of jax.Array, sharded in any way.
          data: state of the data iterator: dicts, lists, str, int, float, bool, None, bytes.
          loop: whatever else the loop needs to go on, of the same types.
          metrics: evaluation at this step, with the config's `best_metric` among them; None if there was none.

        Returns:
          False if the step was saved already.

        Raises:
          OSError: if this or the previous save could not be written (full disk); earlier checkpoints are untouched.
          ValueError: for metrics without `best_metric`, or content that cannot be stored.
        """
        self.wait()
        if step in self._orbax.all_steps():
            return False
        loss = self._loss(metrics)
        record = Record(
            step, self._tokenizer_digest, self._experiment, dict(data), dict(loop), loss, describe(state)
        ).to_json()
        items = {STATE: ocp.args.StandardSave(state), RECORD: ocp.args.JsonSave(record)}
        self._remove_temporaries()
        self._note_loss(step, loss)
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
        restored = restore.restore_state(self._directory, abstract_state, self._tokenizer_digest, step)
        if restored and restored.skipped:
            self._set_aside([damaged for damaged, _ in restored.skipped])
            _log.warning("resuming from checkpoint %d", restored.step)
        return restored

    def close(self) -> None:
        """Waits for the save under way, then ends the background threads. May be called twice."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
        except OSError as error:
            raise ValueError(
                f"checkpoint directory {self._directory} cannot be written ({error.strerror or error}): "
                "make it writable, or choose another place for the run"
            ) from error

    def _open_orbax(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Retention(self._config, self._losses),
            create=False,
            lightweight_initialize=True,
            save_root_metadata=False,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _remove_temporaries(self) -> None:
        if jax.process_index() == 0:
            for path in self._directory.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(path, ignore_errors=True)  # writes of a failed save may still be under way in it

    def _set_aside(self, steps: Sequence[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                (self._directory / str(step)).rename(_unused(self._directory / f"corrupt-{step}"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints set aside")
        for step in steps:
            self._losses.pop(step, None)
        self._orbax.reload()

    def _loss(self, metrics: Mapping[str, float] | None) -> float | None:
        if metrics is None or not self._config.keep_best:
            return None
        name = self._config.best_metric
        check(name in metrics, f"best_metric is {name!r}, but the evaluation gave {sorted(metrics)}: name one of those")
        return float(metrics[name]) if math.isfinite(metrics[name]) else None

    def _note_loss(self, step: int, loss: float | None) -> None:
        if loss is not None:
            self._losses[step] = loss

    def _failure(self, error: Exception) -> OSError:
        free = shutil.disk_usage(self._directory).free
        for _ in range(3):  # every part of the save that failed raises once; a manager with errors left is of no use
            with contextlib.suppress(Exception):
                self._orbax.close()
        self._losses.pop(self._unfinished, None)
        self._remove_temporaries()
        self._orbax = self._open_orbax()
        return OSError(
            f"checkpoint {self._unfinished} could not be written to {self._directory}, where {free:,} bytes were free: "
            f"{root_cause(error)}\nThe newest whole checkpoint is that of step {self.latest_step}. Make room "
            "(or lower keep_last and keep_best), then give the same command again: it resumes from there."
        )


@dataclasses.dataclass(frozen=True)
class _Retention:
    """Orbax's preservation policy: the newest and the best. `losses` is shared with `Checkpoints`, which fills it."""

    config: CheckpointConfig
    losses: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        best = _ranked([step for step in steps if step in self.losses], self.losses)[: self.config.keep_best]
        kept = {*steps[-self.config.keep_last :], *best}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _ranked(steps: Sequence[int], losses: Mapping[int, float]) -> list[int]:
    """Best first; of equals the later."""
    return sorted(steps, key=lambda step: (losses[step], -step))


def _unused(path: Path) -> Path:
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(other for other in itertools.chain([path], numbered) if not other.exists())
