"""A training run: open its directory, check that processes agree, restore, train, finish."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from llm_jax.assemble import Assembly, assemble
from llm_jax.branch import Branch
from llm_jax.checkpoints.digest import not_finite
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.record import CheckpointRecord, Identity
from llm_jax.checkpoints.restore import Restored, saved_steps
from llm_jax.core import chips, config_text, garbage, paths, trees
from llm_jax.core.checks import check
from llm_jax.core.object_lock import ObjectLock
from llm_jax.core.run_directory import ReadOnlyRun, RunDirectory, machine_card
from llm_jax.core.run_lock import RunHeld, RunLock
from llm_jax.core.source import SourceCode
from llm_jax.evals import RunEnd
from llm_jax.experiment import Experiment
from llm_jax.hosts.process_group import Hosts
from llm_jax.models import count
from llm_jax.objectives.objective import AnyBatch
from llm_jax.resumption import changes, check_same_data, newest, open_run, step_to_resume
from llm_jax.run_header import header
from llm_jax.run_hooks import Saver, attached, evaluated_run
from llm_jax.sharding.connect import connect
from llm_jax.starts import RunStart
from llm_jax.train import hooks
from llm_jax.train.display import Display, LogConsole
from llm_jax.train.loop import train
from llm_jax.train.pace import Pace
from llm_jax.train.state import TrainState


def run_training(
    experiment: Experiment,
    runs: str | Path,
    cache: Path,
    fresh: bool = False,
    hosts: Hosts | None = None,
    step: int | None = None,
    branch: Branch | None = None,
    source: SourceCode | None = None,
    accept_changes: bool = False,
) -> RunDirectory:
    """Trains `experiment` in `runs`/<name>, or resumes it after an earlier call.

    Args:
      runs: a folder, or an address at gs://. All processes must share it.
      cache: a folder, shared or local to each process. The first process fills it before the others read it.
      fresh: whether to delete an earlier run of that name first.
      hosts: the value of `hosts.joined`, if several processes train together.
      step: the checkpoint to resume from; None: the newest. Later ones, and their records and samples, are renamed.
      branch: the checkpoint with which a new run starts. On resuming, it must be the same or None.
      source: the user's files, which the run directory stores; None: those that define types of the experiment.
      accept_changes: whether to resume with changed files.

    Raises:
      ValueError: if the directory holds a run of another experiment or on other data, or with `fresh` something
        that is not a run; if another process trains in it; if a restored state is not finite; if a tracker needs a
        package that is not installed; if the processes do not agree on experiment, data or run directory, or are not
        jax's processes.
      FloatingPointError: if loss or gradients become non-finite.
    """
    hosts = Hosts() if hosts is None else hosts
    check(
        hosts.count == jax.process_count(),
        f"jax runs on {jax.process_count()} processes and `hosts` has {hosts.count}: instead of "
        "jax.distributed.initialize use `with llm_jax.hosts.joined(HostsConfig(...)) as hosts`, and pass it here",
    )
    check(step is None or not fresh, "--step resumes a run and --fresh deletes it: omit one of them")
    source = SourceCode.of(experiment) if source is None else source
    source.check(experiment)
    hosts.agree("experiment", config_text.flatten(experiment))
    hosts.agree("the files that define the experiment", {"digest": source.digest})
    run = (RunDirectory if hosts.leads else ReadOnlyRun)(paths.at(runs) / experiment.name)
    _check_start(experiment, run, branch, hosts)
    with run.locked(_say(hosts)) as lock:
        step = hosts.gather("step", step_to_resume(run, step))[0]
        if hosts.leads and not fresh:
            open_run(run, experiment, source, step, _say(hosts), accept_changes)
        with hosts.leader_first("tokenizer and data"):
            begun = branch is not None or (not fresh and newest(run, step) is not None)
            parts = assemble(experiment, cache, begun)
            if parts.tokenizer is not None:
                source.check_type(type(parts.tokenizer))
        if fresh:
            # The old run is deleted only now that the new run is known to be able to start.
            run.delete()
            run.open(experiment)
        _check_hosts(hosts, parts, run)
        connect(parts.layout.concrete, hosts)
        _run(_Opened(parts, run, lock, hosts, source), step, branch)
    return run


def _check_start(experiment: Experiment, run: RunDirectory, branch: Branch | None, hosts: Hosts) -> None:
    """Checks that packages of trackers are installed, no run starts from itself, and a branch has the same data."""
    if hosts.leads:
        for tracker in experiment.trackers:
            tracker.require()
    here, start = run.path.resolve(), experiment.start
    check(
        not isinstance(start, RunStart) or paths.at(start.run).resolve() != here,
        f"start.run is {run.path}, the run itself: give the new run another --name",
    )
    if branch is not None:
        check(branch.run.path.resolve() != here, f"--from {branch} is the run itself: give another --name")
        branch.changes(experiment)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A run whose directory is locked by this job, with all that is needed to train it."""

    parts: Assembly
    run: RunDirectory
    lock: RunLock | ObjectLock
    hosts: Hosts
    source: SourceCode


def _run(opened: _Opened, step: int | None, branch: Branch | None) -> None:
    """Restores, trains and finishes."""
    parts, run, hosts = opened.parts, opened.run, opened.hosts
    experiment, data = parts.experiment, parts.dataset.manifest()["digest"]
    begun = newest(run, step)
    origin = _origin(run, begun, branch, parts)
    identity = Identity(config_text.to_text(experiment), _tokenizer_digest(parts), data, origin, opened.source.digest)
    with (
        parts.programs.activated(),
        Checkpoints(run.checkpoints, experiment.checkpoint, identity) as checkpoints,
    ):
        if begun is not None:
            check_same_data(run, begun.run.data, data)
        if parts.tokenizer is not None:
            run.write_tokenizer(parts.tokenizer)
        restored = checkpoints.restore(parts.programs.abstract_state, step)
        final = restored.state if restored is not None and restored.step >= experiment.steps else None
        begin = None
        if final is None:
            begin, facts = _beginning(opened, checkpoints, restored, branch if begun is None else None)
            if step is not None:
                facts |= _gone_back(run, checkpoints, step)
            run.write_card(**_card(parts), **facts, source=origin, code=identity.code)
            run.write_experiment(identity.experiment)
            run.write_source(opened.source)
        with _noted_end(run):
            if begin is not None:
                state, finished = _train(opened, checkpoints, begin)
                final = state if finished else None
            if final is not None:
                _finish(parts, run, final, hosts)
                run.end_card("finished")


def _origin(
    run: RunDirectory, begun: CheckpointRecord | None, branch: Branch | None, parts: Assembly
) -> dict[str, Any]:
    """Origin of the run's weights, as stored in its checkpoints."""
    if begun is None:
        if branch is None:
            return {"start": None if parts.fit is None else parts.fit.weights.origin}
        check(not run.has_begun, f"{run.path} holds a run already: give the branch another --name, or pass --fresh")
        return branch.source
    found = begun.run.source
    check(
        branch is None or all(found.get(name) == branch.source[name] for name in ("run", "step")),
        f"{run.path} holds a run that started from {found} and not from {branch}: omit --from to resume it, or give "
        "the new run another --name",
    )
    return dict(found)


def _beginning(
    opened: _Opened, checkpoints: Checkpoints, restored: Restored | None, branch: Branch | None
) -> tuple[Restored, dict[str, Any]]:
    """The state with which training starts, and facts about it for the card."""
    parts, run = opened.parts, opened.run
    experiment, tokenizer = parts.experiment, _tokenizer_digest(parts)
    if restored is not None:
        facts = {"changes": changes(restored.run.experiment, experiment, restored.step, str(run.path))}
        if restored.run.code not in (None, opened.source.digest):
            facts["changes"] += [f"code: {restored.run.code} -> {opened.source.digest}"]
        _check_finite(restored.state, f"checkpoint {restored.step} in {run.checkpoints}")
        return restored, {"resumed_from": restored.step, **facts}
    facts: dict[str, Any] = {"resumed_from": None}
    if branch is not None:
        check_same_data(branch.run, branch.data, parts.dataset.manifest()["digest"])
        facts["changes"] = branch.changes(experiment)
        found = branch.restored(parts.programs.abstract_state, tokenizer)
        _check_finite(found.state, f"checkpoint {branch.step} in {branch.run.checkpoints}")
        # The state is saved in the new run, so that it can be resumed before its next save and without the other run.
        checkpoints.save(found.step, found.state, found.data, found.loop)
        checkpoints.wait()
        return dataclasses.replace(found, loop=found.loop | {"records": {}}), facts
    state = parts.initial_state()
    if parts.fit is not None:
        _check_finite(state, parts.fit.weights.origin)
        facts["start"] = parts.fit.facts()
    if parts.frozen:
        origins = ", ".join(fit.weights.origin for fit in parts.frozen.values())
        _check_finite(dataclasses.replace(state, params={}, opt_state={}, ema=None), origins)
        facts["frozen"] = {name: fit.facts() for name, fit in parts.frozen.items()}
    identity = Identity(config_text.to_text(experiment), tokenizer)
    return Restored(0, state, {}, {"seconds": 0.0}, identity), facts


def _check_finite(state: TrainState, where: str) -> None:
    """Checks a state before training.

    Raises:
      ValueError: if a value of the state is not finite, because training could not recover from it.
    """
    bad = not_finite(state)
    check(
        not bad,
        f"{where} has values that are not finite in {len(bad)} arrays: {', '.join(bad[:4])}. Start from an earlier "
        "checkpoint, by --step or --from RUN:STEP, or from other weights",
    )


def _gone_back(run: RunDirectory, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """Renames checkpoints, records and samples after `step`. Returns facts about it for the card."""
    later = [f"checkpoint {other}" for other in checkpoints.go_back(step)]
    moved = [path.name for path in run.set_aside_after(step)]
    return {"went_back_to": step, "set_aside": later + moved}


@contextlib.contextmanager
def _noted_end(run: RunDirectory) -> Iterator[None]:
    """Records on the card how the block ended, if it ended by an exception."""
    try:
        yield
    except RunHeld:
        raise  # the card now belongs to another process
    except FloatingPointError as error:
        _note(run, "diverged", str(error))
        raise
    except KeyboardInterrupt:
        _note(run, "interrupted", "a second SIGINT came before the run was saved")
        raise
    except Exception as error:
        _note(run, "failed", f"{type(error).__name__}: {error}")
        raise


def _note(run: RunDirectory, how: str, why: str) -> None:
    with contextlib.suppress(OSError):  # a full disk may be what the exception reports
        run.end_card(how, why)


def _tokenizer_digest(parts: Assembly) -> str:
    return parts.tokenizer.digest if parts.tokenizer else "none"


def _say(hosts: Hosts) -> Callable[[str], None]:
    """A function that shows a line, on the first process only."""
    return functools.partial(_console(hosts).print, highlight=False, markup=False, soft_wrap=True)


def _check_hosts(hosts: Hosts, parts: Assembly, run: RunDirectory) -> None:
    """Checks that all processes have the same data and see the files of the first process."""
    if hosts.count == 1:
        return
    hosts.gather("run directory opened")
    hosts.agree("data", {"digest": parts.dataset.manifest()["digest"]})
    # Compared by bytes, because a config with user-defined types cannot be parsed here.
    file = run.experiment_file
    experiment = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else "absent"
    seen = {file.name: experiment, "checkpoints": str(saved_steps(run.checkpoints))}
    hosts.agree("run directory, which --runs-dir must put on a file system that they share", seen)


def _train(opened: _Opened, checkpoints: Checkpoints, begin: Restored) -> tuple[TrainState, bool]:
    """Trains. Returns the last state, and whether all steps are done."""
    parts, run, hosts = opened.parts, opened.run, opened.hosts
    experiment, first = parts.experiment, begin.step
    iterator = parts.dataset.train_iterator(0, *parts.share)
    if begin.data:
        iterator.set_state(begin.data)
    with (
        contextlib.closing(_recorder(experiment, run, hosts)) as recorder,
        Display(first, experiment.steps, experiment.log_every, _console(hosts)) as display,
        hooks.StopOnSignal(hosts, display.print, functools.partial(_kept, run)) as signals,
    ):
        for step, reason in begin.skipped:
            display.print(f"checkpoint {step} is damaged ({reason}); resuming from {first}")
        if first:
            display.print(f"resuming {run.path} after step {first}")
        recorder.write_again(begin.loop.get("records", {}))
        saver = Saver(run, opened.lock, checkpoints, iterator, recorder)
        attached_hooks = attached(parts, run, saver, recorder, display, signals, begin)
        pace = Pace(hosts, recorder.write, display.print, experiment.log_every)
        display.print(header(parts, run))
        if counts := parts.dataset.record_counts():
            recorder.write("data", first, **counts)
        batches = _compiled(parts, hosts, display, pace.timed(map(parts.place, iterator)))
        state = train(begin.state, parts.programs.step, batches, [pace, *attached_hooks], first, experiment.steps)
        if stopped := signals.reason():
            display.print(f"stopped by {stopped} and saved; the same command resumes")
            run.end_card("stopped", stopped)
    return state, not stopped


def _compiled(parts: Assembly, hosts: Hosts, display: Display, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
    """The batches, after the step is compiled on all processes. Otherwise a slow compilation would make other processes
    wait in a collective, and the first step times would include compilation."""
    begun, batch = time.perf_counter(), next(batches)
    display.print("compiling the update")
    parts.programs.compile_step(batch)
    hosts.gather("update compiled")
    garbage.settle()
    display.print(f"compiled after {time.perf_counter() - begun:.1f} s")
    display.begin()
    return itertools.chain((batch,), batches)


def _kept(run: RunDirectory) -> str:
    """Message about the checkpoints that remain after an interruption."""
    saved = saved_steps(run.checkpoints)
    if not saved:
        return f"no checkpoint of {run.path} is complete; the same command begins again"
    return f"the run is kept up to checkpoint {saved[-1]} in {run.checkpoints}; the same command resumes after it"


def _recorder(experiment: Experiment, run: RunDirectory, hosts: Hosts) -> hooks.Recorder:
    if not hosts.leads:
        return hooks.Silent()
    return hooks.Recorder(run, experiment.trackers, config_text.to_text(experiment))


def _console(hosts: Hosts) -> LogConsole:
    return LogConsole(quiet=not hosts.leads)


def _finish(parts: Assembly, run: RunDirectory, state: TrainState, hosts: Hosts) -> None:
    """Runs `finish` of all evaluations, after the last step."""
    recorded = frozenset((kind, step) for kind, step in hosts.gather("records", _recorded(run))[0])
    with contextlib.closing(_recorder(parts.experiment, run, hosts)) as recorder:
        weights = functools.partial(parts.programs.weights, state)
        end = RunEnd(parts.experiment.steps, weights, recorded, recorder.write, hosts.leads)
        for evaluation in parts.experiment.evaluations:
            evaluation.finish(evaluated_run(parts), end)


def _recorded(run: RunDirectory) -> list[tuple[str, int]]:
    """(kind, step) of every record."""
    return [(record["kind"], record["step"]) for record in run.records()]


def _card(parts: Assembly) -> dict[str, Any]:
    """The card entry for this start of the run."""
    experiment = parts.experiment
    chip, plan = chips.chip(jax.devices()[0].device_kind), parts.layout.schedule
    return machine_card() | {
        "experiment_digest": config_text.digest(experiment),
        "job": os.environ.get("SLURM_JOB_ID"),
        "seed": experiment.seed,
        "data": parts.dataset.card(),
        "mesh": dict(parts.layout.mesh.shape),
        "pipeline": dataclasses.asdict(plan) | {"bubble": plan.bubble} if plan else None,
        "peak_flops": chip.peak_flops if chip else None,
        "peak_flops_source": chip.source if chip else None,
        "model": {
            "parameters": trees.count(parts.programs.abstract_state.params),
            "active_parameters": round(count.active_parameters(experiment.model)),
            "training_flops_per_token": experiment.training_flops,
        },
    }
