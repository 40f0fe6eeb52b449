"""assemble(): the single composition root, where an Experiment becomes parts that work together, and runs."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.restore import Restored
from llm_jax.core import chips, config, trees
from llm_jax.core.checks import check
from llm_jax.core.run_directory import RunDirectory, machine_card
from llm_jax.data.batch import Batch
from llm_jax.data.feed import global_batch, host_share
from llm_jax.data.pipeline import Dataset, EvaluationSet
from llm_jax.evals import compression
from llm_jax.experiment import Experiment
from llm_jax.inference.generate import Generator
from llm_jax.interop.family import architecture
from llm_jax.interop.hf import load_hf, read_config
from llm_jax.models import count
from llm_jax.models.build import abstract_parameters
from llm_jax.models.transformer import Transformer
from llm_jax.sharding import partition
from llm_jax.sharding.rules import Table
from llm_jax.tokenizers import Tokenizer
from llm_jax.train import hooks
from llm_jax.train.compile import compiled
from llm_jax.train.loop import Hook, train
from llm_jax.train.state import TrainState, initial_state, state_of, state_shardings
from llm_jax.train.step import StepReport, evaluation_step, train_step


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The working parts of an experiment. Nothing is computed or allocated on a device until a part is used."""

    experiment: Experiment
    tokenizer: Tokenizer | None
    dataset: Dataset
    model: Transformer
    mesh: Mesh
    table: Table
    abstract_state: TrainState
    """Shapes, types and shardings of the training state."""
    initial_state: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, StepReport]]
    evaluate: Callable[[Any, Batch], Any]
    weights: Callable[[TrainState], Any]
    """The weights that evaluation, samples and generation use."""

    def place(self, rows: dict) -> Batch:
        """A batch over all devices from this host's stacked rows."""
        return global_batch(self.experiment.objective.batch(rows), self.mesh, self._batch_spec)

    def activated(self) -> contextlib.AbstractContextManager:
        """Context in which the model is traced, so that its activations are laid out over the mesh."""
        return partition.activate(self.mesh, self.table)

    @property
    def share(self) -> tuple[int, int]:
        """(host, hosts): which part of every batch this process reads."""
        return host_share(self.mesh, self._batch_spec, self.experiment.data.batch_size)

    @property
    def _batch_spec(self) -> PartitionSpec:
        return partition.batch_sharding(self.mesh, self.table).spec


def assemble(experiment: Experiment, cache: Path) -> Assembly:
    """Builds the parts of `experiment`; tokenizer and tokenised data are made in `cache` if they are not there.

    Raises:
      ValueError: for data that cannot be read, a vocabulary larger than the model's, or a mesh that does not fit.
    """
    tokenizer = _tokenizer(experiment, cache)
    mesh, table = experiment.sharding.mesh.build(), experiment.sharding.strategy.table()
    dataset = experiment.data.build(tokenizer, cache, experiment.seed, experiment.objective.example)
    check(
        dataset.vocab_size <= experiment.model.vocab_size,
        f"the data have {dataset.vocab_size} different tokens and model.vocab_size is {experiment.model.vocab_size}: "
        "the model must have at least as many",
    )
    model = Transformer(experiment.model, experiment.precision)
    shapes, logical_axes = abstract_parameters(model)
    optimizer = experiment.optimizer.build(experiment.steps, shapes, logical_axes)
    ema = experiment.update.ema_decay is not None
    initial = functools.partial(initial_state, model, optimizer, experiment.seed, ema)
    abstract = jax.eval_shape(initial)
    shardings = state_shardings(abstract, logical_axes, mesh, table)
    batch = partition.batch_sharding(mesh, table)
    update = train_step(model, experiment.objective, optimizer, experiment.update, experiment.seed)
    return Assembly(
        experiment=experiment,
        tokenizer=tokenizer,
        dataset=dataset,
        model=model,
        mesh=mesh,
        table=table,
        abstract_state=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
        ),
        initial_state=_beginning(experiment, initial, optimizer, shardings),
        step=compiled(
            update,
            experiment.precision,
            mesh.devices.flat[0],
            in_shardings=(shardings, batch),
            out_shardings=(shardings, None),
            donate_argnums=0,
        ),
        evaluate=jax.jit(evaluation_step(model, experiment.objective), in_shardings=(shardings.params, batch)),
        weights=hooks.weights_for_use(experiment.optimizer.evaluation_params),
    )


def _beginning(
    experiment: Experiment,
    fresh: Callable[[], TrainState],
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
) -> Callable[[], TrainState]:
    """The state before the first update: fresh, or with weights that are there already."""
    if experiment.start is None:
        return jax.jit(fresh, out_shardings=shardings)
    found, wanted = (architecture(config) for config in (read_config(experiment.start), experiment.model))
    check(
        found == wanted,
        f"{experiment.start} holds another model than the experiment's: "
        f"{'; '.join(config.diff(wanted, found)[:4])}; model=read_config(folder) takes the one that is there",
    )
    ema = experiment.update.ema_decay is not None

    def state() -> TrainState:
        _, params = load_hf(experiment.start, experiment.precision.params)
        begin = functools.partial(state_of, optimizer=optimizer, ema=ema)
        return jax.jit(begin, out_shardings=shardings)(params)

    return state


def run_training(experiment: Experiment, runs: Path, cache: Path, fresh: bool = False) -> RunDirectory:
    """Trains `experiment` in `runs`/<name>, resuming where an earlier call stopped.

    Args:
      fresh: deletes an earlier run of that name first.

    Raises:
      ValueError: if the directory holds a run of another experiment or on other data, or with `fresh` something
        that is no run.
      FloatingPointError: if loss or gradients stop being finite.
    """
    run = RunDirectory(runs / experiment.name)
    if not fresh:
        run.open(experiment)
    parts = assemble(experiment, cache)
    if fresh:
        # Only now is it known that the new run can start.
        run.delete()
        run.open(experiment)
    digest = parts.tokenizer.digest if parts.tokenizer else "none"
    with (
        parts.activated(),
        Checkpoints(run.checkpoints, experiment.checkpoint, digest, config.to_text(experiment)) as checkpoints,
    ):
        if parts.tokenizer is not None:
            parts.tokenizer.save(run.tokenizer)
        restored = checkpoints.restore(parts.abstract_state)
        if restored is not None:
            _check_same_data(run, parts.dataset.manifest())
        if restored is None or restored.step < experiment.steps:
            run.write_card(**_card(parts), resumed_from=restored.step if restored else None)
            state, finished = _train(parts, run, checkpoints, restored)
        else:
            state, finished = restored.state, True
        if finished:
            _finish(parts, run, state)
    return run


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
    parts: Assembly, run: RunDirectory, checkpoints: Checkpoints, restored: Restored | None
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
        contextlib.closing(hooks.Recorder(run)) as recorder,
        hooks.Display(first, experiment.steps, experiment.log_every) as display,
        hooks.StopOnSignal() as signals,
    ):
        for step, reason in restored.skipped if restored else ():
            display.print(f"checkpoint {step} is damaged ({reason}); resuming from {first}")
        if restored:
            display.print(f"resuming {run.path} after step {first}")
        attached = _hooks(parts, run, checkpoints, iterator, recorder, display, signals, seconds, first)
        batches = map(parts.place, iterator)
        state = train(state, parts.step, batches, attached, first, experiment.steps)
        if signals.received:
            display.print(f"stopped by {signals.received.name} and saved; the same command resumes")
    return state, not signals.received


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
    rate = experiment.optimizer.learning_rate(experiment.steps)
    log = hooks.Log(recorder, display, _throughput(parts), rate, experiment.log_every, seconds)
    evaluations = [
        hooks.Evaluate(
            found.name,
            functools.partial(_placed, parts, found),
            parts.evaluate,
            parts.weights,
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
            hooks.Sample(_sampler(parts), parts.weights, experiment.samples.every, experiment.steps, run.samples)
        ]
    # Evaluation comes before saving, so that a checkpoint knows its loss; stopping comes last, when all has been done.
    saving = hooks.Save(save, checkpoints.wait, experiment.checkpoint.every, first)
    return [log, *evaluations, *samples, saving, signals]


def _finish(parts: Assembly, run: RunDirectory, state: TrainState) -> None:
    """Scores the test part and its baselines, once."""
    evaluation = parts.experiment.evaluation
    done = {record["kind"] for record in run.records()}
    for found in parts.dataset.evaluation("test", *parts.share) if evaluation.test else ():
        if f"eval/{found.name}" not in done:
            values = hooks.evaluate(parts.evaluate, parts.weights(state), _placed(parts, found), found.text_bytes)
            hooks.record(run, f"eval/{found.name}", parts.experiment.steps, **values)
    if evaluation.compressors and not any(kind.startswith("baseline/") for kind in done):
        texts = [[doc.text.encode() for doc in parts.experiment.data.text(part)] for part in ("train", "test")]
        for name, bits in compression.baselines(*texts).items():
            hooks.record(run, f"baseline/{name}", 0, bits_per_byte=bits)


def _tokenizer(experiment: Experiment, cache: Path) -> Tokenizer | None:
    if experiment.tokenizer is None:
        return None
    text = experiment.data.text("train")
    return experiment.tokenizer.build(lambda: (document.text for document in text), cache, text.digest)


def _evaluation_sets(parts: Assembly) -> tuple[EvaluationSet, ...]:
    limit = parts.experiment.evaluation.max_bytes
    return parts.dataset.evaluation("validation", *parts.share, limit)


def _placed(parts: Assembly, found: EvaluationSet) -> Iterator[Batch]:
    return map(parts.place, found.batches)


def _sampler(parts: Assembly) -> Callable[[Any], str]:
    """A function from weights to a page of samples."""
    samples, tokenizer = parts.experiment.samples, parts.tokenizer
    check(tokenizer is not None, "samples.prompts are text, and the experiment has no tokenizer: leave them out")
    generator = Generator(parts.model, samples.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
    prompts = [parts.experiment.prompt(tokenizer, prompt) for prompt in samples.prompts]

    def sample(params: Any) -> str:
        rows = generator.generate(params, prompts, samples.new_tokens, parts.experiment.seed)
        texts = [prompt + tokenizer.decode(row) for prompt, row in zip(samples.prompts, rows, strict=True)]
        return "\n\n---\n\n".join(texts) + "\n"

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
    chip = chips.chip(jax.devices()[0].device_kind)
    return machine_card() | {
        "experiment_digest": config.digest(experiment),
        "seed": experiment.seed,
        "data": parts.dataset.manifest(),
        "mesh": dict(parts.mesh.shape),
        "peak_flops": chip.peak_flops if chip else None,
        "peak_flops_source": chip.source if chip else None,
        "model": {
            "parameters": trees.count(parts.abstract_state.params),
            "training_flops_per_token": count.training_flops(experiment.model, experiment.data.sequence_length),
        },
    }
