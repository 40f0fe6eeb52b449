"""A training run: open its directory, agree over hosts, restore, train, finish."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import rich.console

from llm_jax.assemble import Assembly, assemble
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.restore import Restored, saved_steps
from llm_jax.core import chips, config, trees
from llm_jax.core.checks import check
from llm_jax.core.run_directory import FollowedRun, RunDirectory, machine_card
from llm_jax.data.batch import Batch
from llm_jax.data.pipeline import EvaluationSet
from llm_jax.evals import compression
from llm_jax.experiment import Experiment
from llm_jax.hosts import Hosts
from llm_jax.inference.generate import Generator
from llm_jax.models import count
from llm_jax.train import hooks
from llm_jax.train.loop import Hook, train
from llm_jax.train.pace import Pace
from llm_jax.train.state import TrainState


def run_training(
    experiment: Experiment, runs: Path, cache: Path, fresh: bool = False, hosts: Hosts | None = None
) -> RunDirectory:
    """Trains `experiment` in `runs`/<name>, resuming where an earlier call stopped.

    Args:
      runs: where there are several hosts, a folder that all of them share.
      cache: shared, or each host's own. The first host fills it before the others look.
      fresh: deletes an earlier run of that name first.
      hosts: what `hosts.joined` gives, where several processes train together.

    Raises:
      ValueError: if the directory holds a run of another experiment or on other data, or with `fresh` something
        that is no run; if the hosts do not agree on experiment, data or run directory, or are not jax's processes.
      FloatingPointError: if loss or gradients stop being finite.
    """
    hosts = Hosts() if hosts is None else hosts
    check(
        hosts.count == jax.process_count(),
        f"jax runs on {jax.process_count()} processes and `hosts` has {hosts.count}: in place of "
        "jax.distributed.initialize use `with llm_jax.hosts.joined(HostsConfig(...)) as hosts`, and give that here",
    )
    hosts.agree("experiment", config.flatten(experiment))
    run = (RunDirectory if hosts.leads else FollowedRun)(runs / experiment.name)
    if not fresh:
        # How arrays are laid over devices decides no result but for rounding, and what dropout draws under jax.pmap and
        # in stages: a run goes on under another layout.
        run.open(experiment, free="sharding")
    with hosts.leader_first("tokenizer and data"):
        parts = assemble(experiment, cache)
    if fresh:
        # Only now is it known that the new run can start.
        run.delete()
        run.open(experiment)
    _check_hosts(hosts, parts, run)
    digest = parts.tokenizer.digest if parts.tokenizer else "none"
    with (
        parts.programs.activated(),
        Checkpoints(run.checkpoints, experiment.checkpoint, digest, config.to_text(experiment)) as checkpoints,
    ):
        if parts.tokenizer is not None:
            run.write_tokenizer(parts.tokenizer)
        restored = checkpoints.restore(parts.programs.abstract_state)
        if restored is not None:
            _check_same_data(run, parts.dataset.manifest())
        if restored is None or restored.step < experiment.steps:
            run.write_card(**_card(parts), resumed_from=restored.step if restored else None)
            state, finished = _train(parts, run, checkpoints, restored, hosts)
        else:
            state, finished = restored.state, True
        if finished:
            _finish(parts, run, state, hosts)
    return run


def _check_hosts(hosts: Hosts, parts: Assembly, run: RunDirectory) -> None:
    """All hosts train on the same data and see what the first has written."""
    if hosts.count == 1:
        return
    hosts.gather("run directory opened")
    hosts.agree("data", {"digest": parts.dataset.manifest()["digest"]})
    # Its bytes: a config of the user's own is not to be parsed back.
    file = run.experiment_file
    experiment = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else "absent"
    seen = {file.name: experiment, "checkpoints": str(saved_steps(run.checkpoints))}
    hosts.agree("run directory, which --runs-dir must put on a file system that they share", seen)


def _check_same_data(run: RunDirectory, manifest: dict[str, Any]) -> None:
    """A run goes on only with the data it began with: positions in other data would mean nothing."""
    starts = run.card().get("starts")
    begun = starts[-1]["data"]["digest"] if starts else manifest["digest"]
    check(
        begun == manifest["digest"],
        f"{run.path} was trained on data of digest {begun} and the data found have {manifest['digest']}: what the "
        "paths name has changed since; bring it back, give the new run another --name, or pass --fresh",
    )


def _train(
    parts: Assembly, run: RunDirectory, checkpoints: Checkpoints, restored: Restored | None, hosts: Hosts
) -> tuple[TrainState, bool]:
    experiment = parts.experiment
    iterator = parts.dataset.train_iterator(0, *parts.share)
    first, seconds = 0, 0.0
    if restored is None:
        state = parts.initial_state()
    else:
        state, first, seconds = restored.state, restored.step, restored.loop["seconds"]
        iterator.set_state(restored.data)
    with (
        contextlib.closing(_recorder(run, hosts)) as recorder,
        hooks.Display(first, experiment.steps, experiment.log_every, _console(hosts)) as display,
        hooks.StopOnSignal(hosts) as signals,
    ):
        for step, reason in restored.skipped if restored else ():
            display.print(f"checkpoint {step} is damaged ({reason}); resuming from {first}")
        if restored:
            display.print(f"resuming {run.path} after step {first}")
        attached = _hooks(parts, run, checkpoints, iterator, recorder, display, signals, seconds, first)
        pace = Pace(hosts, recorder.write, display.print, experiment.log_every)
        batches = pace.timed(map(parts.place, iterator))
        state = train(state, parts.programs.step, batches, [pace, *attached], first, experiment.steps)
        if stopped := signals.reason():
            display.print(f"stopped by {stopped} and saved; the same command resumes")
    return state, not stopped


def _recorder(run: RunDirectory, hosts: Hosts) -> hooks.Recorder:
    return hooks.Recorder(run) if hosts.leads else hooks.Silent()


def _console(hosts: Hosts) -> rich.console.Console:
    return rich.console.Console(stderr=True, quiet=not hosts.leads)


def _hooks(
    parts: Assembly,
    run: RunDirectory,
    checkpoints: Checkpoints,
    iterator: grain.DatasetIterator,
    recorder: hooks.Recorder,
    display: hooks.Display,
    signals: hooks.StopOnSignal,
    seconds: float,
    first: int,
) -> list[Hook]:
    experiment = parts.experiment
    log = hooks.Log(recorder, display, _throughput(parts), experiment.log_every, seconds)
    evaluations = [
        hooks.Evaluate(
            found.name,
            functools.partial(_placed, parts, found),
            parts.programs.evaluate,
            parts.programs.weights,
            found.text_bytes,
            experiment.evaluation.every,
            experiment.steps,
            recorder,
            display,
        )
        for found in _evaluation_sets(parts)
    ]

    def save(step: int, state: TrainState) -> None:
        losses = {f"{item.name}/loss": item.loss for item in evaluations if item.step == step}
        best = losses if experiment.checkpoint.best_metric in losses else None
        checkpoints.save(step, state, iterator.get_state(), {"seconds": log.total_seconds}, best)

    samples = []
    if experiment.samples.prompts:
        samples = [
            hooks.Sample(
                _sampler(parts), parts.programs.weights, experiment.samples.every, experiment.steps, run.write_sample
            )
        ]
    # Evaluation comes before saving, so that a checkpoint knows its loss; stopping comes last, when all has been done.
    saving = hooks.Save(save, checkpoints.wait, experiment.checkpoint.every, first)
    return [log, *evaluations, *samples, saving, signals]


def _finish(parts: Assembly, run: RunDirectory, state: TrainState, hosts: Hosts) -> None:
    """Scores the test part and its baselines, once."""
    evaluation = parts.experiment.evaluation
    done = set(hosts.gather("records", sorted({record["kind"] for record in run.records()}))[0])
    with contextlib.closing(_recorder(run, hosts)) as recorder:
        for found in parts.dataset.evaluation("test", *parts.share) if evaluation.test else ():
            if f"eval/{found.name}" not in done:
                values = hooks.evaluate(
                    parts.programs.evaluate, parts.programs.weights(state), _placed(parts, found), found.text_bytes
                )
                recorder.write(f"eval/{found.name}", parts.experiment.steps, **values)
        if hosts.leads and evaluation.compressors and not any(kind.startswith("baseline/") for kind in done):
            texts = [[doc.text.encode() for doc in parts.experiment.data.text(part)] for part in ("train", "test")]
            for name, bits in compression.baselines(*texts).items():
                recorder.write(f"baseline/{name}", 0, bits_per_byte=bits)


def _evaluation_sets(parts: Assembly) -> tuple[EvaluationSet, ...]:
    limit = parts.experiment.evaluation.max_bytes
    return parts.dataset.evaluation("validation", *parts.share, limit)


def _placed(parts: Assembly, found: EvaluationSet) -> Iterator[Batch]:
    return map(parts.place, found.batches)


def _sampler(parts: Assembly) -> Callable[[Any], str]:
    """A function from weights to a page of samples."""
    samples, tokenizer = parts.experiment.samples, parts.tokenizer
    check(tokenizer is not None, "samples.prompts are text, and the experiment has no tokenizer: leave them out")
    generator = Generator(
        parts.programs.model, samples.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size
    )
    prompts = [parts.experiment.prompt(tokenizer, prompt) for prompt in samples.prompts]

    def sample(params: Any) -> str:
        rows = generator.generate(params, prompts, samples.new_tokens, parts.experiment.seed)
        written = [tokenizer.continuation(*found) for found in zip(prompts, rows, strict=True)]
        return "\n\n---\n\n".join(map(str.__add__, samples.prompts, written)) + "\n"

    return sample


def _throughput(parts: Assembly) -> hooks.Throughput:
    data = parts.experiment.data
    chip = chips.chip(jax.devices()[0].device_kind)
    peak = chip.peak_flops * jax.device_count() if chip else None
    flops = count.training_flops(parts.experiment.model, data.sequence_length)
    return hooks.Throughput(data.batch_size * data.sequence_length, flops, peak)


def _card(parts: Assembly) -> dict[str, Any]:
    """What a reader needs in order to judge the figures of this run."""
    experiment = parts.experiment
    chip, plan = chips.chip(jax.devices()[0].device_kind), parts.layout.schedule
    return machine_card() | {
        "experiment_digest": config.digest(experiment),
        "seed": experiment.seed,
        "data": parts.dataset.card(),
        "mesh": dict(parts.layout.mesh.shape),
        "pipeline": dataclasses.asdict(plan) | {"bubble": plan.bubble} if plan else None,
        "peak_flops": chip.peak_flops if chip else None,
        "peak_flops_source": chip.source if chip else None,
        "model": {
            "parameters": trees.count(parts.programs.abstract_state.params),
            "active_parameters": round(count.active_parameters(experiment.model)),
            "training_flops_per_token": count.training_flops(experiment.model, experiment.data.sequence_length),
        },
    }
