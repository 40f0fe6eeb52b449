"""Resuming a run: checks of its directory, and which fields of its experiment may change.

The record of a checkpoint determines the experiment, data and tokenizer of its run. Other files that are missing or
damaged are written again from it. Only fields in FREE may change. Any other change requires a new run.
"""

import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from llm_jax.checkpoints.record import CheckpointRecord
from llm_jax.checkpoints.restore import readable_records
from llm_jax.core import config_text
from llm_jax.core.checks import check
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.source import SourceCode, own_types
from llm_jax.experiment import Experiment

FREE = (
    "name",  # a directory may be renamed
    "sharding",  # changes rounding, and what dropout draws under jax.pmap and in stages
    "log_every",
    "evaluations",
    "checkpoint",
    "samples",
    "hooks",
    "trackers",
    "data.read_ahead",
)
"""Fields that do not affect the computation, except for rounding."""


def check_run(
    run: RunDirectory, experiment: Experiment, source: SourceCode, step: int | None = None, accept_changes: bool = False
) -> None:
    """Checks that `run` is new or a run of `experiment`, which may continue from checkpoint `step` or the newest.
    Writes nothing.

    A directory without metrics and checkpoints, whose experiment never started, may be used by another experiment.

    Args:
      source: the user's files that define the experiment.
      accept_changes: whether these may differ from those of the run.

    Raises:
      ValueError: if the run has another experiment or other code, or if its experiment is unknown.
    """
    records = readable_records(run.checkpoints)
    check(
        step is None or step in records,
        f"{run.path} has no checkpoint of step {step} that can be read: choose one of {sorted(records)} for --step",
    )
    if records:
        at = max(records) if step is None else step
        changes(records[at].run.experiment, experiment, at, f"checkpoint {at} in {run.checkpoints}")
        _check_source(run, records[at].run.code, experiment, source, accept_changes)
    elif run.has_begun:
        check(
            run.experiment_file.exists(),
            f"{run.path} holds a run but not its {run.experiment_file.name}: restore that file, give the new run "
            "another --name, or pass --fresh to delete the run",
        )
        changes(run.experiment_text(), experiment, 0, str(run.experiment_file))
        _check_source(run, None, experiment, source, accept_changes)


def _check_source(
    run: RunDirectory, digest: str | None, experiment: Experiment, source: SourceCode, accept_changes: bool
) -> None:
    """Checks that the code of user-defined components is that of the run. Without such components the fields of the
    experiment are sufficient, and nothing is checked.

    Args:
      digest: digest of the run's source in its checkpoint; None: that of the copy in the run directory.
    """
    if accept_changes or not own_types(experiment):
        return
    try:
        kept = SourceCode.read(run.source)
    except ValueError:
        kept = None
    digest = kept.digest if digest is None and kept is not None else digest
    if digest in (None, source.digest):
        return
    shown = f"(the copy in {run.source} is missing or damaged)"
    if kept is not None and kept.digest == digest:
        shown = kept.difference(source)
    raise ValueError(
        f"the code that defines the experiment has changed since {run.path} was trained:\n{shown}\nRestore it; or "
        "pass --accept-changes to continue with the new code; or give the new run another --name."
    )


def open_run(
    run: RunDirectory,
    experiment: Experiment,
    source: SourceCode,
    step: int | None,
    say: Callable[[str], None],
    accept_changes: bool = False,
) -> None:
    """Opens a new run, or one that passes `check_run`. Missing or damaged small files are written again from the
    checkpoints, with a message by `say`."""
    check_run(run, experiment, source, step, accept_changes)
    records = readable_records(run.checkpoints)
    if not records:
        if not run.has_begun:
            run.open(experiment)
        return
    at = max(records) if step is None else step
    if problem := _problem(run, [record.run.experiment for record in records.values()]):
        run.write_experiment(records[at].run.experiment)
        say(f"{problem}; it is written again from checkpoint {at}")
    if not run.card_file.exists():
        say(f"{run.card_file} is missing: a new one begins")
    for damage in run.damage():
        say(damage)


def newest(run: RunDirectory, step: int | None) -> CheckpointRecord | None:
    """The record of checkpoint `step`, or by default of the newest that is readable; None if there is none."""
    records = readable_records(run.checkpoints)
    if not records:
        return None
    return records.get(max(records) if step is None else step)


def check_same_data(run: RunDirectory, trained_on: str | None, found: str) -> None:
    """Checks that the data of the experiment is that of the run, so that the data position is valid.

    Args:
      trained_on: digest of the data in the checkpoint's record; None in records of earlier versions, for which the
        digest on the card is used.
      found: digest of the experiment's data.

    Raises:
      ValueError: if the digests differ.
    """
    starts, _ = run.read_card()
    on_card = [start["data"]["digest"] for start in starts if "digest" in (start.get("data") or {})]
    begun = trained_on or (on_card[-1] if on_card else found)
    check(
        begun == found,
        f"{run.path} was trained on data of digest {begun} and the data at the paths now have {found}: restore the "
        "data, give the new run another --name, or pass --fresh",
    )


def step_to_resume(run: RunDirectory, step: int | None) -> int | None:
    """`step`; None if the scheduler has restarted a job that already went back to `step`, because the restarted job
    must continue from the newest checkpoint."""
    starts, _ = run.read_card()
    job = os.environ.get("SLURM_JOB_ID")
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    went_back = any(start.get("went_back_to") == step and start.get("job") == job for start in starts)
    return None if again and went_back else step


def changes(saved: str, experiment: Experiment, made: int, where: str) -> list[str]:
    """The allowed differences between `experiment` and the saved one, one line for each field.

    Args:
      saved: flat text of the run's experiment.
      made: number of completed steps after which the run continues.
      where: file or checkpoint that holds `saved`, for messages.

    Raises:
      ValueError: if a field differs that must not. The message lists all such fields.
    """
    old = config_text.saved_fields(saved)
    found = config_text.differences(old, config_text.flatten(experiment))
    refused = [line for line in found if not _is_free(_path(line))]
    if any(_path(line) != "steps" for line in refused):
        listed = "\n  ".join(refused)
        raise ValueError(
            f"{where} is of another experiment; what changed:\n  {listed}\nGive the new run another --name, with "
            "--from RUN:STEP to continue from this one, or pass --fresh to delete the old one."
        )
    if refused:
        _check_steps(old, experiment, made, where)
    return found


def _is_free(path: str) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in FREE)


def _path(line: str) -> str:
    return line.partition(":")[0]


def _check_steps(old: Mapping[str, str], experiment: Experiment, made: int, where: str) -> None:
    """Checks that a run is only extended, and that its schedule gives all completed steps the same learning rates."""
    before, after = json.loads(old["steps"]), experiment.steps
    change = f"steps: {before} -> {after}"
    check(
        after > before,
        f"{where} is of a longer run ({change}): a run can be extended but not shortened; stop it with SIGTERM at the "
        "wanted step, or give the shorter run another --name with --from RUN:STEP",
    )
    updates = np.arange(made)
    had, would = (np.asarray(experiment.optimizer.learning_rate(steps)(updates)) for steps in (before, after))
    differing = np.flatnonzero(had != would)
    if len(differing):
        first = int(differing[0])
        raise ValueError(
            f"{where} is of a run of {before} steps ({change}): the schedule depends on the number of steps, and the "
            f"learning rate of step {first + 1}, which is complete, was {had[first]:.4g} and would be "
            f"{would[first]:.4g} in the longer run. Continue from a checkpoint of step {first} or before, with "
            "--step; or branch with --name NEW --from RUN:STEP. Schedules that can be extended at any step are "
            "Constant, InverseSqrt and those with decay_steps, and WSD before its decay"
        )


def _problem(run: RunDirectory, texts: list[str]) -> str:
    """The problem with experiment.txt; '' if it is one of `texts` or has the digest on the card."""
    if not run.experiment_file.exists():
        return f"{run.experiment_file} is missing"
    if run.experiment_file.read_bytes().decode(errors="replace") in texts:
        return ""
    starts, _ = run.read_card()
    try:
        run.experiment_text()
    except ValueError:
        return f"{run.experiment_file} is damaged"
    known = any("experiment_digest" in start for start in starts)
    return "" if known else f"{run.experiment_file} is not that of the checkpoints"
