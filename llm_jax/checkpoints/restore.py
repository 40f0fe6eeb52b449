"""Reads checkpoints. It writes nothing, so a run may be read during training.

<directory>/<step>/state/    the arrays, in orbax's format         <directory>/corrupt-<step>/   renamed, damaged
                   record/   everything else (record.py)
           /frozen/          the arrays of frozen models, once for all checkpoints; each record has their digests
"""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from llm_jax.checkpoints.digest import digests
from llm_jax.checkpoints.noise import quiet_orbax
from llm_jax.checkpoints.record import CheckpointRecord, Damaged, Identity, SavedLeaf, root_cause
from llm_jax.core.paths import is_object
from llm_jax.core.trees import named_leaves

STATE = "state"
FROZEN = "frozen"
"""Name of the folder, and of the field of the state, with arrays that are the same in all checkpoints."""
RECORD = "record"
COMMITTED = "commit_success.txt"
"""Name of the object that orbax writes last in an object store, to mark a checkpoint as complete."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A complete checkpoint that was verified to equal what was saved."""

    step: int
    state: Any
    """Tree of jax.Array with the structure, dtypes and shardings of the requested abstract tree."""
    data: dict[str, Any]
    """State of the data iterator."""
    loop: dict[str, Any]
    run: Identity
    """The run that wrote it."""
    skipped: tuple[tuple[int, str], ...] = ()
    """Later checkpoints that are damaged: (step, reason), newest first."""


def restore_state(directory: Path, abstract: Any, tokenizer_digest: str, step: int | None = None) -> Restored | None:
    """Reads the training state of `step`, or by default of the newest checkpoint that is not damaged.

    Args:
      abstract: tree of jax.ShapeDtypeStruct. A leaf without sharding is placed on the first local device. Shardings may
        differ from those of the save.

    Returns:
      None if there are no checkpoints.

    Raises:
      ValueError: for another tokenizer; for a state with other leaves, shapes or dtypes; if `step` does not exist; or
        if every candidate is damaged.
    """
    return _restore(directory, abstract, tokenizer_digest, step)


def restore_params(
    directory: Path, abstract: Any, tokenizer_digest: str, step: int | None = None, part: str = "params"
) -> Restored | None:
    """Same as `restore_state`, but reads only the field `part` of the state: 'params', or 'ema' if the run has one.
    `abstract` and the returned `state` are the tree of that field."""
    restored = _restore(directory, {part: abstract}, tokenizer_digest, step, part)
    return restored and dataclasses.replace(restored, state=restored.state[part])


def saved_steps(directory: Path) -> tuple[int, ...]:
    """Steps of the complete checkpoints, ascending. Some of them may be damaged.

    Only folders whose name is a step without leading zeros, as `save` writes it, are checkpoints.
    """
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in step_folders(directory) if _is_whole(path)))


def step_folders(directory: Path) -> list[Path]:
    """Folders of checkpoints, including incomplete ones in an object store."""
    named = [path for path in directory.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name, re.ASCII)]
    return [path for path in named if path.is_dir()]


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint is complete. In a file system a folder gets its name when everything is written. In an
    object store, which cannot rename a folder atomically, orbax writes the object COMMITTED last."""
    return not is_object(folder) or (folder / COMMITTED).exists()


def readable_records(directory: Path) -> dict[int, CheckpointRecord]:
    """Records of the checkpoints whose record is not damaged, by step."""
    directory = directory.absolute()  # orbax accepts no relative path
    records = {}
    for step in saved_steps(directory):
        try:
            records[step] = _read_record(directory, step)
        except Damaged as reason:
            _log.info("checkpoint %d in %s is damaged: %s", step, directory, reason)
    return records


def best_step(directory: Path, metric: str) -> int:
    """The step with the lowest value of `metric`. Of equal values the later step.

    Raises:
      ValueError: if no checkpoint has a finite value of it. The message lists the metrics that they have.
    """
    records = readable_records(directory)
    found = ranked({step: record.metrics for step, record in records.items()}, metric)
    if not found:
        recorded = {step: sorted(record.metrics) for step, record in records.items()}
        raise ValueError(
            f"no checkpoint in {directory} has a finite value of {metric!r}, so none is the best; recorded by step: "
            f"{recorded}. Choose a checkpoint with --step, omit --best for the newest, or set `every` of the "
            "evaluations such that saved steps are evaluated"
        )
    return found[0]


def ranked(metrics: Mapping[int, Mapping[str, float]], name: str) -> list[int]:
    """Steps with a finite value of the metric `name`, lowest value first. Of equal values the later step is first."""
    values = {step: found[name] for step, found in metrics.items() if math.isfinite(found.get(name, math.nan))}
    return sorted(values, key=lambda step: (values[step], -step))


def check_tokenizer(directory: Path, record: CheckpointRecord, tokenizer_digest: str) -> None:
    """Raises ValueError if the run of `record` was trained with a tokenizer of another digest."""
    if record.run.tokenizer != tokenizer_digest:
        raise ValueError(
            f"the tokenizer has digest {tokenizer_digest}, but checkpoint {record.step} in {directory} was trained "
            f"with {record.run.tokenizer}: use the tokenizer it was trained with, or start a run under a new name"
        )


def _restore(
    directory: Path, abstract: Any, tokenizer_digest: str, step: int | None, part: str | None = None
) -> Restored | None:
    directory = directory.absolute()  # orbax accepts no relative path
    quiet_orbax()
    steps = saved_steps(directory)
    if step is not None and step not in steps:
        raise ValueError(f"{directory} has no checkpoint of step {step}: choose one of {list(steps)}")
    skipped: list[tuple[int, str]] = []
    for candidate in reversed(steps) if step is None else [step]:
        try:
            restored = _read(directory, candidate, abstract, tokenizer_digest, part)
        except Damaged as damage:
            _log.warning("checkpoint %d in %s is damaged: %s", candidate, directory, damage)
            skipped.append((candidate, str(damage)))
        else:
            return dataclasses.replace(restored, skipped=tuple(skipped))
    if skipped:
        reasons = "".join(f"\n  {candidate}: {reason}" for candidate, reason in skipped)
        raise ValueError(
            f"no requested checkpoint in {directory} can be used:{reasons}\nRestore the files from a copy, choose "
            "another step, or pass --fresh to start again from the beginning."
        )
    return None


def _read(directory: Path, step: int, abstract: Any, tokenizer_digest: str, part: str | None) -> Restored:
    """Reads one checkpoint. Raises Damaged in all processes if it is damaged in one, so that all use the same step."""
    problem: Damaged | None = None
    record: CheckpointRecord | None = None
    saved: dict[str, SavedLeaf] = {}
    state: Any = None
    try:
        record = _read_record(directory, step)
        check_tokenizer(directory, record, tokenizer_digest)
        saved = {name: leaf for name, leaf in record.leaves.items() if part is None or name.split("/")[0] == part}
        _check_same_leaves(f"checkpoint {step} in {directory}", saved, abstract)
        own, shared = split(abstract)
        state = joined(
            _read_arrays(directory / str(step) / STATE, own),
            _read_arrays(directory / FROZEN, shared) if shared else shared,
        )
    except Damaged as damage:
        problem = damage
    if not _everywhere(problem is None) or record is None:
        raise problem or Damaged("another process could not read it")
    changed = [name for name, digest in digests(state).items() if digest != saved[name].digest]
    if changed:
        raise Damaged(f"the content of {len(changed)} arrays differs from what was saved: {', '.join(changed[:4])}")
    return Restored(step, state, record.data, record.loop, record.run)


def split(state: Any) -> tuple[Any, dict[str, Any]]:
    """A state without the arrays that are stored once, and those."""
    shared = getattr(state, FROZEN, {})
    return (dataclasses.replace(state, **{FROZEN: {}}) if shared else state), shared


def joined(state: Any, shared: dict[str, Any]) -> Any:
    """Inverse of `split`."""
    return dataclasses.replace(state, **{FROZEN: shared}) if shared else state


def _read_record(directory: Path, step: int) -> CheckpointRecord:
    import orbax.checkpoint as ocp  # Slow to import, and every experiment imports this module by its configs.

    try:
        record = CheckpointRecord.from_json(
            ocp.JsonCheckpointHandler().restore(epath.Path(directory) / str(step) / RECORD)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its record cannot be read ({root_cause(error)})") from error
    if record.step != step:
        raise Damaged(f"its record is that of step {record.step}")
    return record


def _read_arrays(path: Path, abstract: Any) -> Any:
    import orbax.checkpoint as ocp

    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda x: x if x.sharding else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=first), abstract
    )
    args = ocp.args.PyTreeRestore(
        item=placed, restore_args=ocp.checkpoint_utils.construct_restore_args(placed), partial_restore=True
    )
    try:
        return ocp.PyTreeCheckpointHandler().restore(epath.Path(path), args=args)
    # Damage can raise almost any exception, from KeyError to those of tensorstore. Leaves were checked before.
    except Exception as error:
        raise Damaged(f"its arrays cannot be read ({root_cause(error)})") from error


def _check_same_leaves(where: str, saved: Mapping[str, SavedLeaf], abstract: Any) -> None:
    found = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in saved.items()}
    expected = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(abstract)}
    differing = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if differing:
        lines = "".join(
            f"\n  {name}: checkpoint {found.get(name, 'has none')}, expected {expected.get(name, 'none')}"
            for name in differing[:6]
        )
        raise ValueError(
            f"{where} holds another state than the experiment; {len(differing)} arrays differ:{lines}\nUse the model, "
            "optimizer and precision that wrote it (its run directory's experiment.txt lists them)."
        )


def _everywhere(good: bool) -> bool:
    """Whether `good` holds in every process."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
