"""The command line: `llm-jax <verb> ...`. Each verb is one small function over the library."""

import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Literal

import jax
import tyro
from rich.console import Console

from llm_jax.analysis import ablation
from llm_jax.analysis.documents import check_markers, publish, with_pictures
from llm_jax.analysis.report import compare, markdown_table, write_report
from llm_jax.assemble import experiment_programs, run_training
from llm_jax.checkpoints import restore
from llm_jax.core import config
from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.files import write_atomically
from llm_jax.core.run_directory import RunDirectory
from llm_jax.experiment import Experiment, load_ablation, load_experiment
from llm_jax.hosts import HostsConfig, joined
from llm_jax.inference.generate import Generator
from llm_jax.inference.sampling import SamplingConfig
from llm_jax.interop import catalogue, load_hf, save_hf
from llm_jax.models.build import abstract_parameters
from llm_jax.models.families import SIZES
from llm_jax.models.summary import summary
from llm_jax.models.transformer import Transformer
from llm_jax.parity import table as parity
from llm_jax.parity.cell import WAYS
from llm_jax.parity.models import MODELS
from llm_jax.parity.strategies import DEVICES, STRATEGIES
from llm_jax.planning import shardings
from llm_jax.sharding.partition import Layout
from llm_jax.tokenizers import load_tokenizer
from llm_jax.variants import run_variants

Arg = tyro.conf.Positional


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it: the same command goes on where it was stopped.

    Fields of the experiment are overridden by name: `llm-jax train FILE --steps 200 --optimizer.peak-lr 1e-3`;
    `llm-jax train FILE --help` lists them all.
    """

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""
    runs_dir: Path = Path("runs")
    """Folder of run directories."""
    cache_dir: Path = Path(".cache")
    """Folder of trained tokenizers, tokenised data and compiled programs."""
    fresh: bool = False
    """Delete an earlier run of that name and begin anew."""
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
    """Take the checkpoint of lowest validation loss instead of the newest."""
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
class Ablate:
    """Train the variants that a file defines, each with several seeds, and say which differ by more than by chance.

    Fields of all variants are overridden by name, as for `train`. What is trained already is not trained again.
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
    """Take the checkpoint of lowest validation loss instead of the newest."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `llm-jax`. A ValueError is the user's to mend and is shown without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_overview())
        return
    if verb not in VERBS:
        sys.exit(f"llm-jax: there is no verb {verb!r}{did_you_mean(verb, VERBS)}\n\n{_overview()}")
    try:
        VERBS[verb][1](arguments[1:])
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"llm-jax {verb}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _train(arguments: list[str]) -> None:
    options, overrides = _parse(Train, arguments)
    if {"-h", "--help"} & set(overrides):
        load_experiment(options.file, overrides)  # prints the help and ends, while no host counts on this one
    with joined(options.hosts) as hosts:
        experiment = load_experiment(options.file, overrides)
        _keep_compiled_programs(options.cache_dir)
        run = run_training(experiment, options.runs_dir, options.cache_dir, options.fresh, hosts)
    if hosts.leads and _is_finished(run, experiment.steps):
        _say_where(run)


def _show(arguments: list[str]) -> None:
    options, overrides = _parse(Show, arguments)
    print(config.to_text(load_experiment(options.file, overrides)), end="")


def _generate(arguments: list[str]) -> None:
    options = _parse_all(Generate, arguments)
    run = RunDirectory(options.run)
    experiment, tokenizer = run.experiment(), load_tokenizer(run.tokenizer)
    model = Transformer(experiment.model, experiment.precision)
    params = _parameters(run, model, tokenizer.digest, options.step, options.best)
    generator = Generator(model, options.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
    prompt = experiment.prompt(tokenizer, options.prompt)
    decoder = tokenizer.stream(prompt)
    print(options.prompt, end="", flush=True)
    for tokens_B in generator.stream(params, [prompt], options.new_tokens, options.seed):
        if tokens_B[0] == tokenizer.eos_id:
            break
        print(decoder.push(int(tokens_B[0])), end="", flush=True)
    print(decoder.flush())


def _report(arguments: list[str]) -> None:
    options = _parse_all(Report, arguments)
    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
    else:
        print(compare(options.runs, options.output))


def _ablate(arguments: list[str]) -> None:
    options, overrides = _parse(Ablate, arguments)
    found = load_ablation(options.file, overrides)
    unknown = [name for name in options.only if name not in found.variants]
    check(not unknown, f"--only names {unknown}, and the variants are {list(found.variants)}: take some of those")
    chosen = {name: one for name, one in found.variants.items() if name in options.only or not options.only}
    if options.publish is not None:
        check_markers(options.publish, options.file.stem)
    _keep_compiled_programs(options.cache_dir)
    folder = options.runs_dir / options.file.stem
    results = run_variants(chosen, options.seeds, folder, options.cache_dir)
    print(text := ablation.write(results, folder, found.report))
    if options.publish is not None:
        command = shlex.join(["llm-jax", "ablate", *arguments])
        text = with_pictures(text, folder, options.file, options.publish)
        publish(options.publish, options.file.stem, f"`{command}`\n\n{text}")


def _params(arguments: list[str]) -> None:
    options = _parse_all(Params, arguments)
    check(
        options.name in SIZES,
        f"there is no size {options.name!r}{did_you_mean(options.name, SIZES)}; `llm-jax families` lists all",
    )
    model = SIZES[options.name]()
    for fact, value in summary(model, model.max_length if options.length is None else options.length).items():
        print(f"{fact:<24}{value}")


def _shardings(arguments: list[str]) -> None:
    options, overrides = _parse(Shardings, arguments)
    experiment = load_experiment(options.file, overrides)
    devices = jax.device_count() if options.devices is None else options.devices
    _console().print(shardings.table(experiment_programs(experiment, Layout.abstract(experiment.sharding, devices))))


def _parity(arguments: list[str]) -> None:
    options = _parse_all(Parity, arguments)
    if options.publish is not None:
        check_markers(options.publish, "parity")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with Console(stderr=True).status("parity") as status:
        ways = tuple(WAYS) if options.ways == ("all",) else options.ways
        cells = list(parity.matrix(options.models, options.strategies, ways, status.update))
    if options.output is not None:
        write_atomically(options.output, json.dumps([dataclasses.asdict(found) for found in cells], indent=1))
    _console().print(parity.table(cells))
    if options.publish is not None:
        headings, *found = parity.rows(cells)
        text = f"{date.today()}. {parity.TITLE}.\n\n{markdown_table(headings, found)}"
        publish(options.publish, "parity", f"`{shlex.join(['llm-jax', 'parity', *arguments])}`\n\n{text}")
    wrong = [found for found in cells if not parity.is_right(found)]
    check(not wrong, f"{len(wrong)} of {len(cells)} cells differ from one device, or are not what they say")


def _console() -> Console:
    """For tables: as wide as they need where no terminal limits it."""
    return Console(width=None if sys.stdout.isatty() else 200)


def _families(arguments: list[str]) -> None:
    _parse_all(Families, arguments)
    print(catalogue())


def _convert(arguments: list[str]) -> None:
    options = _parse_all(Convert, arguments)
    run = RunDirectory(options.source)
    if run.experiment_file.exists():
        experiment, tokenizer = run.experiment(), load_tokenizer(run.tokenizer)
        model = Transformer(experiment.model, experiment.precision)
        params = _parameters(run, model, tokenizer.digest, options.step, options.best)
    else:
        check((options.source / "config.json").exists(), f"{options.source} is neither a run nor a transformers folder")
        check(
            options.step is None and not options.best, "--step and --best choose a checkpoint of a run: leave them out"
        )
        model, params = load_hf(options.source)
    save_hf(model, params, options.destination, options.family, options.dtype)
    print(f"wrote {options.destination}")


VERBS: dict[str, tuple[type, Callable[[list[str]], None]]] = {
    "train": (Train, _train),
    "show": (Show, _show),
    "generate": (Generate, _generate),
    "report": (Report, _report),
    "families": (Families, _families),
    "ablate": (Ablate, _ablate),
    "params": (Params, _params),
    "shardings": (Shardings, _shardings),
    "parity": (Parity, _parity),
    "convert": (Convert, _convert),
}


_FIELDS = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(Experiment)]


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10} {kind.__doc__.splitlines()[0]}" for name, (kind, _) in VERBS.items())
    return f"usage: llm-jax VERB ...\n\n{verbs}\n\n`llm-jax VERB --help` explains a verb."


def _parse(kind: type, arguments: list[str]) -> tuple:
    """The verb's own options, and what is left over for the experiment that it names."""
    asks = [word for word in arguments if word in ("-h", "--help")]
    names_file = len(arguments) > len(asks) and not arguments[0].startswith("-")
    own = [word for word in arguments if word not in asks] if names_file else arguments
    options, rest = tyro.cli(kind, args=own, prog=f"llm-jax {kind.__name__.lower()}", return_unknown_args=True)
    known = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    for word in rest:
        if word.startswith("--") and word not in _FIELDS and (hint := did_you_mean(word.split("=")[0], known, 0.8)):
            raise ValueError(f"there is no option {word}{hint}")
    return options, rest + asks


def _parse_all(kind: type, arguments: list[str]):
    return tyro.cli(kind, args=arguments, prog=f"llm-jax {kind.__name__.lower()}")


def _parameters(run: RunDirectory, model: Transformer, tokenizer_digest: str, step: int | None, best: bool):
    """The weights of a run that are meant for use: its moving average if it keeps one."""
    part = "params" if run.experiment().update.ema_decay is None else "ema"
    shapes, _ = abstract_parameters(model)
    step = restore.best_step(run.checkpoints) if best else step
    restored = restore.restore_params(run.checkpoints, shapes, tokenizer_digest, step, part)
    check(restored is not None, f"{run.path} has no checkpoint yet: train it, or wait for its first save")
    return restored.state


def _keep_compiled_programs(cache: Path) -> None:
    """Programs compiled once are read back by later runs; JAX_COMPILATION_CACHE_DIR names another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "jax").absolute()))


def _is_finished(run: RunDirectory, steps: int) -> bool:
    return max(restore.saved_steps(run.checkpoints), default=0) == steps


def _say_where(run: RunDirectory) -> None:
    print(
        f"\nThe run is complete. Its report: {write_report(run.path)}\n"
        "Next:\n"
        f"  llm-jax generate {run.path} --prompt 'def main('\n"
        f"  llm-jax report {run.path}\n"
        f"  tensorboard --logdir {run.tensorboard}    (pip install tensorboard)"
    )
