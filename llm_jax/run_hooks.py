"""The hooks of a training run, built from its experiment: metrics, evaluations, samples, checkpoints."""

import functools
from collections.abc import Callable, Mapping

import grain
import jax

from llm_jax.assemble import Assembly
from llm_jax.checkpoints.manager import Checkpoints
from llm_jax.checkpoints.restore import Restored
from llm_jax.core import chips, rng
from llm_jax.core.checks import given
from llm_jax.core.object_lock import ObjectLock
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.run_lock import RunLock
from llm_jax.evals import EvaluatedRun, Evaluation
from llm_jax.inference.generate import Generator
from llm_jax.train import hooks
from llm_jax.train.display import Display
from llm_jax.train.hook_config import TrainingRun
from llm_jax.train.loop import Hook
from llm_jax.train.state import EvaluationWeights, TrainState


class Saver:
    """Saves checkpoints, from which the run is resumed."""

    def __init__(
        self,
        run: RunDirectory,
        lock: RunLock | ObjectLock,
        checkpoints: Checkpoints,
        iterator: grain.DatasetIterator,
        recorder: hooks.Recorder,
    ):
        self._run, self._lock, self._checkpoints = run, lock, checkpoints
        self._iterator, self._recorder = iterator, recorder
        self._files = run.small_files()

    def save(self, step: int, state: TrainState, seconds: float, metrics: Mapping[str, float]) -> None:
        """Saves a checkpoint. If the directory was deleted meanwhile, first creates it again with its small files and
        records.

        Raises:
          RunHeld: if another process has taken the directory.
          OSError: if the checkpoint cannot be written.
        """
        self._lock.check()
        self._run.put_back(self._files)
        self._recorder.keep_file()
        loop = {"seconds": seconds, "records": self._recorder.latest}
        self._checkpoints.save(step, state, self._iterator.get_state(), loop, metrics)

    def wait(self) -> None:
        """Waits until all saves are on disk."""
        self._checkpoints.wait()


def attached(
    parts: Assembly,
    run: RunDirectory,
    saver: Saver,
    recorder: hooks.Recorder,
    display: Display,
    signals: hooks.StopOnSignal,
    begin: Restored,
) -> list[Hook]:
    """The hooks of a run, in the order in which the loop calls them."""
    experiment = parts.experiment
    log = hooks.Log(recorder, display, _throughput(parts), experiment.log_every, begin.loop["seconds"])
    evaluations = [_evaluate(parts, config, recorder, display) for config in experiment.evaluations]

    def save(step: int, state: TrainState) -> None:
        metrics: dict[str, float] = {}
        for item in evaluations:
            metrics |= item.metrics if item.step == step else {}
        saver.save(step, state, log.total_seconds, metrics)

    samples = []
    if experiment.samples.prompts:
        samples = [
            hooks.Sample(
                _sampler(parts),
                parts.programs.weights,
                experiment.samples.every,
                experiment.steps,
                run.write_sample,
                display.print,
            )
        ]
    used = TrainingRun(experiment, run, parts.programs, parts.tokenizer, begin.step, recorder.write, display.print)
    own = [config.build(used) for config in experiment.hooks]
    # Evaluation comes before saving, so that a checkpoint has its loss. Hooks that may replace the state come before
    # both. Stopping comes last, so that all other hooks of the step have run.
    saving = hooks.Save(save, saver.wait, experiment.checkpoint.every, begin.step)
    return [log, *own, *evaluations, *samples, saving, signals]


def evaluated_run(parts: Assembly) -> EvaluatedRun:
    """The parts of a run that evaluations use."""
    return EvaluatedRun(parts.experiment, parts.programs, parts.tokenizer, parts.dataset, parts.share, parts.place)


def _evaluate(parts: Assembly, config: Evaluation, recorder: hooks.Recorder, display: Display) -> hooks.Evaluate:
    experiment, evaluator = parts.experiment, config.build(evaluated_run(parts))
    name = f"evaluation {type(config).__name__}"
    return hooks.Evaluate(
        lambda weights, step: evaluator(weights, rng.key(experiment.seed, name, step)),
        functools.partial(config.compared, experiment),
        parts.programs.weights,
        config.every,
        experiment.steps,
        recorder,
        display,
    )


def _sampler(parts: Assembly) -> Callable[[EvaluationWeights], str]:
    """Returns a function from weights to the text of all samples."""
    samples = parts.experiment.samples
    tokenizer = given(parts.tokenizer, "samples.prompts are text, and the experiment has no tokenizer: remove them")
    generator = Generator(
        parts.programs.model, samples.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size
    )
    prompts = [parts.experiment.prompt(tokenizer, prompt) for prompt in samples.prompts]

    def sample(weights: EvaluationWeights) -> str:
        rows = generator.generate(weights.params, prompts, samples.new_tokens, parts.experiment.seed)
        written = [tokenizer.continuation(*found) for found in zip(prompts, rows, strict=True)]
        return "\n\n---\n\n".join(map(str.__add__, samples.prompts, written)) + "\n"

    return sample


def _throughput(parts: Assembly) -> hooks.Throughput:
    data = parts.experiment.data
    chip = chips.chip(jax.devices()[0].device_kind)
    peak = chip.peak_flops * jax.device_count() if chip else None
    return hooks.Throughput(data.batch_size * data.sequence_length, parts.experiment.training_flops, peak)
