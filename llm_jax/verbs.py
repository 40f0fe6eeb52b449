"""What each verb of the command line takes; its docstrings are its `--help`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from llm_jax.hosts import HostsConfig
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.parity.models import MODELS
from llm_jax.parity.strategies import STRATEGIES

Arg = tyro.conf.Positional


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it: the same command continues where it was stopped.

    A resumed run may be longer where its schedule allows that, and may differ in log_every, evaluation, checkpoint,
    samples and sharding.

    Fields of the experiment are overridden by name: `llm-jax train FILE --steps 200 --optimizer.peak-lr 1e-3`;
    `llm-jax train FILE --help` lists them all.
    """

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""
    runs_dir: Path = Path("runs")
    """Folder of run directories."""
    cache_dir: Path = Path(".cache")
    """Folder of trained tokenizers, tokenised data and compiled programs."""
    verify_data: bool = False
    """Read corpus and tokenised data again, even if size, times and inode of their files have not changed."""
    fresh: bool = False
    """Delete an earlier run of that name and begin anew."""
    step: int | None = None
    """Resume from this checkpoint of the run instead of the newest; later ones are set aside."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN[:STEP]")] = None
    """Begin a new run as a branch of another: with weights, optimizer state and data position of its checkpoint STEP,
    or of its newest one."""
    accept_changes: bool = False
    """Resume although the code of the experiment's own components has changed; the run keeps the former code too."""
    cpu_devices: int | None = None
    """Train on the CPU as this number of simulated devices, to try a mesh without the hardware; None: on the devices of
    the machine."""
    hosts: HostsConfig = HostsConfig()
    """Needed only where several processes train together and no scheduler says so."""


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the resolved experiment as flat text, overrides applied."""

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Continue a prompt with the model of a run, as it is generated."""

    run: Arg[Path]
    """Run directory."""
    prompt: str
    """Text to continue."""
    new_tokens: int = 128
    """Longest continuation."""
    step: int | None = None
    """Checkpoint; the newest if not given."""
    best: bool = False
    """Take the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    seed: int = 0
    """Decides the sample."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_p=0.95)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the report of a run, or compare several runs in one table and plot."""

    runs: Arg[tuple[Path, ...]]
    """Run directories."""
    output: Path = Path("runs/comparison.md")
    """Where the comparison of several runs goes."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """Say which experts of a trained model serve which kinds of text: a table, and a picture beside the run."""

    run: Arg[Path]
    """Run directory."""
    step: int | None = None
    """Checkpoint to take; the newest if not given."""
    best: bool = False
    """Take the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    cache_dir: Path = Path(".cache")
    """As for `train`."""


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Train the variants that a file defines, each with several seeds, and say which differ by more than by chance.

    Fields of all variants are overridden by name, as for `train`. What is trained already is not trained again.
    Runs that diverge, fail or are killed are listed in the report, and end none of the others.
    """

    file: Arg[Path]
    """Python file that defines variants() -> dict[str, Experiment], the first of which is the baseline."""
    seeds: int = 3
    """Runs of each variant: seeds 0, 1, 2 and so on."""
    only: tuple[str, ...] = ()
    """Names of the variants to train; all if none is given."""
    runs_dir: Path = Path("runs")
    """Where the runs and the report go, into a folder of the file's name."""
    cache_dir: Path = Path(".cache")
    """As for `train`."""
    cpu_devices: int | None = None
    """As for `train`."""
    publish: Path | None = None
    """Markdown file in which the result is put too, between <!-- NAME --> and <!-- /NAME -->, NAME the file's, and
    beside which its pictures are copied."""


@dataclasses.dataclass(frozen=True)
class Params:
    """Say what a published model costs: parameters, FLOPs, cache and memory, from its config alone."""

    name: Arg[str]
    """Name of a size, such as llama2-7b; `llm-jax families` lists them."""
    length: int | None = None
    """Tokens of a row; the model's longest if not given."""


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Say where each parameter of an experiment lies and what a device holds, before anything is allocated.

    Fields of the experiment are overridden by name, as for `train`.
    """

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""
    devices: int | None = None
    """Devices to lay it over; as many as this machine has if not given."""


@dataclasses.dataclass(frozen=True)
class Parity:
    """Train small models by every strategy on eight simulated devices, and compare with one device."""

    models: tuple[str, ...] = tuple(MODELS)
    """Models to train."""
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies to train them by."""
    ways: tuple[str, ...] = ("loop",)
    """How they are run: loop over layers, unrolled, remat, accumulated; `all` for each."""
    output: Path | None = None
    """JSON file of all that was measured."""
    publish: Path | None = None
    """Markdown file in which the table is put, between <!-- parity --> and <!-- /parity -->."""


@dataclasses.dataclass(frozen=True)
class Families:
    """List the published families and sizes, and how they are proven against transformers."""

    init: bool = False
    """Show instead what the parameters of each family are drawn from, and where that was published."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a checkpoint in the format of Hugging Face's transformers.

    The source is a run of ours, or a folder in that format, to change its number type or family.
    """

    source: Arg[Path]
    """Run directory, or folder with config.json and safetensors."""
    destination: Arg[Path]
    """Folder to write."""
    family: str | None = None
    """`model_type` to write; the first one that can say all of the model if not given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in the files."""
    step: int | None = None
    """Checkpoint of a run; the newest if not given."""
    best: bool = False
    """Take the checkpoint with the lowest checkpoint.best_metric instead of the newest."""
    tokenizer: bool = True
    """Whether the folder gets the tokenizer of the source, for AutoTokenizer."""
