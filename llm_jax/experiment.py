"""The Experiment, a frozen dataclass with all settings of a run, and the files that define one."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from llm_jax.checkpoints.checkpoint_config import CheckpointConfig
from llm_jax.core import user_file
from llm_jax.core.checks import check, check_positive, check_seed, did_you_mean
from llm_jax.core.configclass import configclass, deferred
from llm_jax.core.dtypes import Precision
from llm_jax.core.overrides import overridden
from llm_jax.core.source import SourceCode
from llm_jax.data.pipeline import DataConfig, Dataset
from llm_jax.evals import Evaluation, PerplexityConfig
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.config import ModelConfig
from llm_jax.models.stack import in_stages
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.objectives.objective import Objective
from llm_jax.optim import Optimizer
from llm_jax.sharding.rules import DataParallel, ShardingConfig
from llm_jax.starts import FrozenModel, Start
from llm_jax.tokenizers import Tokenizer, TokenizerConfig
from llm_jax.trackers import TensorBoardConfig, Tracker
from llm_jax.train.hook_config import HookConfig
from llm_jax.train.step import StepConfig


@configclass
class SampleConfig:
    """Text samples from the model during training."""

    prompts: tuple[str, ...] = ()
    """Prompts to continue; empty: no samples."""
    every: int = 1000
    """Steps between two samples. The last step is sampled as well."""
    new_tokens: int = 128
    """Number of new tokens of each continuation."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_p=0.95)

    def __post_init__(self):
        check_positive(every=self.every, new_tokens=self.new_tokens)


@configclass(kw_only=True)
class Experiment:
    """All settings of a run."""

    name: str
    """Name of the run directory."""
    steps: int
    """Number of training steps in the whole run."""
    seed: int = 0
    """Seed of parameters, data order, dropout and samples."""
    tokenizer: TokenizerConfig | None
    """None if the data consists of tokens (synthetic sources)."""
    data: DataConfig
    model: ModelConfig
    """A decoder, an encoder or an encoder-decoder, as the objective requires."""
    start: Start | None = None
    """Initial weights; None: random initialisation."""
    frozen: tuple[FrozenModel, ...] = ()
    """Models that are not trained and that the objective runs by their names, such as a teacher."""
    objective: Objective = CausalLMConfig()
    optimizer: Optimizer
    update: StepConfig = StepConfig()
    precision: Precision = Precision()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluations: tuple[Evaluation, ...] = (PerplexityConfig(),)
    """Evaluations during training."""
    samples: SampleConfig = SampleConfig()
    hooks: tuple[HookConfig, ...] = ()
    """Additional hooks of the training loop, such as a profiler trace."""
    trackers: tuple[Tracker, ...] = (TensorBoardConfig(),)
    """Destinations of the run's records in addition to metrics.jsonl."""
    log_every: int = 10
    """Steps between two records of the training metrics."""

    def __post_init__(self):
        check_positive(steps=self.steps, log_every=self.log_every)
        check_seed(seed=self.seed)
        check(
            self.name not in ("", ".", "..") and Path(self.name).name == self.name,
            f"name is {self.name!r}: it must be a plain name without slashes, since it names a folder",
        )
        self.objective.check(self.model, self.data.sequence_length)
        self._check_frozen()
        self.optimizer.learning_rate(self.steps)  # a schedule that does not fit into the run raises here
        length = self.data.sequence_length
        for name, model in self._models.items():
            check(
                length <= model.max_length,
                f"data.sequence_length is {length} and {name}.max_length is {model.max_length}: the sequence "
                "length must not exceed max_length; increase max_length or reduce sequence_length",
            )
        batch, parts = self.data.batch_size, self.update.accumulate
        check(
            batch % parts == 0,
            f"data.batch_size is {batch} and update.accumulate is {parts}: accumulate must divide batch_size; change "
            "one of them",
        )
        divided = parts > 1 or self.sharding.strategy == DataParallel(use_pmap=True)
        check(
            not (divided and self.objective.compares_rows),
            f"objective {type(self.objective).__name__} compares the rows of a batch, and update.accumulate is {parts} "
            f"and sharding.strategy {self.sharding.strategy}, so that its loss would see parts of the batch: set "
            "accumulate to 1 and use no pmap, or let the objective compare the rows of a microbatch",
        )
        check(
            not self.samples.prompts or self.objective.needs.direction == "causal",
            f"samples.prompts require a decoder, and objective {type(self.objective).__name__} trains none: remove "
            "them",
        )
        self._check_metrics()
        self._check_experts(self.sharding.mesh.expert)
        if (plan := self.sharding.schedule) is not None:
            for stack in (stack for model in self._models.values() for stack in model.stacks):
                in_stages(stack.segments, plan)
            plan.check_rows(batch // parts, 1)

    @property
    def frozen_models(self) -> dict[str, ModelConfig]:
        """Configs of the frozen models by name."""
        return {one.name: one.model for one in self.frozen}

    @property
    def training_flops(self) -> float:
        """FLOPs of a training step for each token of its rows, with those of frozen models."""
        length = self.data.sequence_length
        frozen = self.objective.frozen_flops(self.frozen_models, length)
        return self.objective.training_flops(self.model, length) + frozen

    @property
    def _models(self) -> dict[str, ModelConfig]:
        """Configs of all models, by the name of their field for messages."""
        return {"model": self.model} | {f"frozen model {name}": config for name, config in self.frozen_models.items()}

    def _check_frozen(self) -> None:
        names = [one.name for one in self.frozen]
        twice = sorted({name for name in names if names.count(name) > 1})
        check(
            not twice, f"`frozen` has two models named {', '.join(twice)}: the objective runs them by name; rename one"
        )
        self.objective.check_frozen(self.model, self.frozen_models)

    def _check_metrics(self) -> None:
        """Checks that each metric is recorded by only one evaluation, and that `checkpoint.best_metric` is recorded."""
        names = [name for evaluation in self.evaluations for name in evaluation.metrics(self)]
        best, keep_best = self.checkpoint.best_metric, self.checkpoint.keep_best
        twice = sorted({name for name in names if names.count(name) > 1})
        check(
            not twice,
            f"evaluations record {', '.join(twice)} more than once: a metric must have one value per step; remove one "
            "of the evaluations",
        )
        check(
            best in names or not keep_best,
            f"checkpoint.best_metric is {best!r}, and the evaluations record "
            f"{', '.join(names) or 'no metric'}{did_you_mean(best, names)}; set it to one of those, or set "
            "checkpoint.keep_best to 0",
        )

    def _check_experts(self, devices: int) -> None:
        """Checks that experts are divisible over the expert axis, and rows into groups, as far as mesh axes have fixed
        sizes."""
        layers = [layer for model in self._models.values() for stack in model.stacks for layer in stack.experts]
        counts = sorted({layer.count for layer in layers})
        check(
            devices == 1 or len(counts) > 0,
            f"sharding.mesh.expert is {devices} and the model has no MoE layers: set it to 1 and increase "
            "mesh.data, or set the ffn of blocks to a MoEConfig",
        )
        uneven = [count for count in counts if devices != -1 and count % devices]
        check(
            not uneven,
            f"sharding.mesh.expert is {devices} and layers have {', '.join(map(str, uneven))} experts: set it to a "
            "divisor of these numbers",
        )
        for layer in layers:
            layer.check_rows(self.data.sequence_length, max(self.sharding.mesh.context, 1))

    def dataset(self, tokenizer: Tokenizer | None, cache: Path) -> Dataset:
        """The data with the examples of the objective. Text is tokenised and stored in `cache` if it is not there.

        Raises:
          ValueError: for data that cannot be read, and for a tokenizer that lacks something that the objective needs.
        """
        examples = self.objective.examples(self.model, tokenizer, self.data.sequence_length)
        return self.data.build(tokenizer, cache, self.seed, examples)

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Token ids of the prompt `text`, with bos if training documents begin with it."""
        return [tokenizer.bos_id] * self.data.bos + tokenizer.encode(text)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that the Python file at `path` defines by its function `experiment()`, with overridden fields.

    Args:
      overrides: as on the command line, such as ["--steps", "200", "--optimizer.peak-lr", "1e-3"].

    Raises:
      ValueError: if the file is missing or defines no experiment.
      SystemExit: for an invalid override. The message names it and makes a suggestion.
    """
    file = _File.read(path, overrides, _experiment)
    return file.overridden(file.found)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The content of a file with variants of an experiment."""

    variants: dict[str, Experiment]
    """Variants by name. The first is the baseline."""
    source: SourceCode
    """The file, and the local modules that it imports."""
    report: Callable[..., str] | None
    """(results, folder) -> Markdown, for `llm_jax.analysis.ablation.write`; None: the default report."""


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """The variants that the Python file at `path` defines by its function `variants()`, with overridden fields, and its
    function `report`, if it has one.

    Raises:
      ValueError: if the file is missing or defines no variants, or if a name is not a valid folder name.
      SystemExit: as `load_experiment`.
    """
    file = _File.read(path, overrides, _variants)
    named, report = file.found
    return Ablation({name: file.overridden(one) for name, one in named.items()}, SourceCode.of_file(Path(path)), report)


def _experiment(module: ModuleType) -> Experiment:
    return _checked(user_file.call(module, "experiment", "an Experiment"), f"experiment() of {module.__file__}")


def _variants(module: ModuleType) -> tuple[dict[str, Experiment], Callable[..., str] | None]:
    """The variants of a module, each with its key as `name`, and the module's function `report`."""
    place = f"variants() of {module.__file__}"
    found = user_file.call(module, "variants", "a dict from names to Experiments")
    check(
        isinstance(found, dict),
        f"{place} returned a {type(found).__name__}: it must return a dict from names to Experiments",
    )
    check(len(found) > 0, f"{place} returned none: it must return at least one Experiment")
    named = {name: dataclasses.replace(_checked(one, f"{name!r} in {place}"), name=name) for name, one in found.items()}
    return named, getattr(module, "report", None)


def _checked(found: Any, place: str) -> Experiment:
    check(
        isinstance(found, Experiment),
        f"{place} is a {type(found).__name__}: return an Experiment of llm_jax",
    )
    return found


@dataclasses.dataclass(frozen=True)
class _File:
    """The content of an experiment file, and the overrides."""

    path: Path
    overrides: Sequence[str]
    found: Any
    text: str | None
    """The file's docstring."""
    refused: ValueError | None
    """The error of the file without the overrides; None if it is valid."""

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str], read: Callable[[ModuleType], Any]) -> Self:
        """Runs the file.

        If a config in it is invalid and there are overrides, which may correct it, the file is run again with checks
        `deferred`, and `overridden` checks the changed experiment. The first run checks immediately, because a file may
        itself test whether a config is valid.
        """
        path, refused = Path(path), None
        for rules in (contextlib.nullcontext(), deferred()):
            try:
                with rules, user_file.user_code(path.parent):
                    module = user_file.run_file(path)
                    return cls(path, overrides, read(module), module.__doc__, refused)
            except ValueError as error:
                refused = refused or error
                if not overrides:
                    break
        raise refused

    def overridden(self, default: Experiment) -> Experiment:
        """`default` with the overrides."""
        if not self.overrides:
            return default
        try:
            return overridden(default, self.overrides, f"llm-jax train {self.path}", self.text, str(self.path))
        except ValueError as error:
            if self.refused is not None and str(error) in str(self.refused):
                raise self.refused from error  # it names the line
            raise
