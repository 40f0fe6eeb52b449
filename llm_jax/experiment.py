"""The Experiment: one frozen dataclass that says everything about a run, and the files that define one."""

import dataclasses
import difflib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import tyro

from llm_jax.checkpoints.manager import CheckpointConfig
from llm_jax.core.checks import check, check_positive, check_seed, did_you_mean
from llm_jax.core.configclass import configclass
from llm_jax.core.dtypes import Precision
from llm_jax.data.pipeline import DataConfig
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.models.config import TransformerConfig
from llm_jax.models.stack import in_stages
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import Optimizer
from llm_jax.sharding.rules import ShardingConfig
from llm_jax.tokenizers import AnyTokenizerConfig, Tokenizer
from llm_jax.train.step import StepConfig


@configclass
class SampleConfig:
    """Text that the model writes while it trains, to be looked at."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; none: no samples."""
    every: int = 1000
    """Updates between two samples; one is taken at the end as well."""
    new_tokens: int = 128
    """Length of each continuation."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_p=0.95)

    def __post_init__(self):
        check_positive(every=self.every, new_tokens=self.new_tokens)


@configclass
class EvaluationConfig:
    """How often held-out text is scored, and against what."""

    every: int = 500
    """Updates between two evaluations of the validation part; it is evaluated at the end as well."""
    max_bytes: int | None = None
    """Size of the sample of the validation part that is scored during training; None: all of it."""
    test: bool = False
    """Whether the test part is scored, whole, at the end."""
    compressors: bool = False
    """Whether gzip, xz and a byte 5-gram of the training text are set beside the model's score of the test part."""

    def __post_init__(self):
        check_positive(every=self.every)
        check(self.test or not self.compressors, "evaluation.compressors needs the test part: set evaluation.test")


@configclass(kw_only=True)
class Experiment:
    """Everything that decides what a run computes."""

    name: str
    """Name of the run's directory."""
    steps: int
    """Updates in the whole run."""
    seed: int = 0
    """Decides parameters, order of the data, dropout and samples."""
    tokenizer: AnyTokenizerConfig | None
    """None where the data are tokens already (synthetic sources)."""
    data: DataConfig
    model: TransformerConfig = dataclasses.field(
        metadata={"remedy": "only causal language models can be trained, until there are objectives for others"}
    )
    """A causal one: there is no objective for others yet."""
    start: str | None = None
    """Folder in the format of Hugging Face's transformers, of the same model, with whose weights training begins, or of
    the same without experts, which then begin as copies of its ffn (models/upcycle.py); None: fresh ones. The tokenizer
    of the folder, if it has one, must be the experiment's."""
    objective: CausalLMConfig = CausalLMConfig()
    optimizer: Optimizer
    update: StepConfig = StepConfig()
    precision: Precision = Precision()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    samples: SampleConfig = SampleConfig()
    log_every: int = 10
    """Updates between two records of the training figures."""

    def __post_init__(self):
        check_positive(steps=self.steps, log_every=self.log_every)
        check_seed(seed=self.seed)
        check(
            self.name not in ("", ".", "..") and Path(self.name).name == self.name,
            f"name is {self.name!r}: it becomes a folder, so it must be a plain name without slashes",
        )
        self.objective.check(self.model)
        self.optimizer.learning_rate(self.steps)  # a schedule that does not fit into the run raises here
        length, limit = self.data.sequence_length, self.model.max_length
        check(
            length <= limit,
            f"data.sequence_length is {length} and model.max_length is {limit}: the model has no positions beyond "
            "its max_length; raise it or shorten the rows",
        )
        batch, parts = self.data.batch_size, self.update.accumulate
        check(
            batch % parts == 0,
            f"data.batch_size is {batch} and update.accumulate is {parts}: the batch is cut into that many equal "
            "microbatches; change one of them",
        )
        names, best = self.data.held_out.names, self.checkpoint.best_metric
        check(
            best in names or not self.checkpoint.keep_best,
            f"checkpoint.best_metric is {best!r}, and this experiment records {', '.join(names)}"
            f"{did_you_mean(best, names)}; name one of those, or set checkpoint.keep_best to 0",
        )
        self._check_experts(self.sharding.mesh.expert)
        if (plan := self.sharding.schedule) is not None:
            for side in self.model.sides:
                in_stages(side.segments, plan)
            plan.check_rows(batch // parts, 1)
        check(
            length % self.objective.chunks == 0,
            f"objective.chunks is {self.objective.chunks} and data.sequence_length is {length}: rows are cut into "
            "that many equal chunks; change one of them",
        )

    def _check_experts(self, devices: int) -> None:
        """That experts can be divided over the expert axis, and rows into groups, where the sizes of mesh axes are not
        left to the number of devices."""
        layers = [layer for side in self.model.sides for layer in side.experts]
        counts = sorted({layer.count for layer in layers})
        check(
            devices == 1 or counts,
            f"sharding.mesh.expert is {devices} and the model has no experts: devices along that axis would be "
            "replicas; set it to 1 and mesh.data larger, or give blocks a MoEConfig as ffn",
        )
        uneven = [count for count in counts if devices != -1 and count % devices]
        check(
            not uneven,
            f"sharding.mesh.expert is {devices} and layers have {', '.join(map(str, uneven))} experts: each device "
            "holds as many; set it to a number that divides them",
        )
        for layer in layers:
            layer.check_rows(self.data.sequence_length, max(self.sharding.mesh.context, 1))

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Token ids with which the model begins to continue `text`, as its documents begin."""
        return [tokenizer.bos_id] * self.data.bos + tokenizer.encode(text)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that the Python file at `path` defines by its function `experiment()`, with fields overridden.

    Args:
      overrides: as on the command line, such as ["--steps", "200", "--optimizer.peak-lr", "1e-3"].

    Raises:
      ValueError: if the file is missing or defines no experiment.
      SystemExit: for an override that does not fit; the message names it and what was probably meant.
    """
    module = _module(Path(path))
    check(hasattr(module, "experiment"), f"{path} defines no function experiment() that returns an Experiment")
    return _overridden(module.experiment(), path, overrides, module.__doc__)


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What a file with variants of an experiment defines."""

    variants: dict[str, Experiment]
    """By name; the first is what the others are compared with."""
    report: Callable[..., str] | None
    """(results, folder) -> Markdown, as `llm_jax.analysis.ablation.write` takes it; None: its own."""


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """The variants that the Python file at `path` defines by its function `variants()`, fields of all of them
    overridden, and its function `report`, if it has one.

    Raises:
      ValueError: if the file is missing or defines no variants, or one has a name that cannot be a folder's.
      SystemExit: as `load_experiment`.
    """
    module = _module(Path(path))
    check(
        hasattr(module, "variants"),
        f"{path} defines no function variants() that returns a dict from names to Experiments",
    )
    found = module.variants()
    check(len(found) > 0, f"variants() of {path} returned none: it must return at least one Experiment")
    named = {name: dataclasses.replace(one, name=name) for name, one in found.items()}
    variants = {name: _overridden(one, path, overrides, module.__doc__) for name, one in named.items()}
    return Ablation(variants, module.report if hasattr(module, "report") else None)


def _module(path: Path) -> ModuleType:
    """The Python file at `path`, run."""
    if not path.is_file():
        near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*.py")), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no experiment file {path}{hint}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _overridden(default: Experiment, path: str | Path, overrides: Sequence[str], text: str | None) -> Experiment:
    kind = type(default).__name__
    check(isinstance(default, Experiment), f"{path} returned a {kind}, no Experiment: give experiments of llm_jax")
    return tyro.cli(
        Experiment,
        default=default,
        args=list(overrides),
        prog=f"llm-jax train {path}",
        description=text,
        config=(tyro.conf.AvoidSubcommands,),
    )
