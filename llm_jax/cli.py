"""The command line: `llm-jax <verb> ...`. Each verb is one small function over the library."""

import contextlib
import dataclasses
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import jax
import tyro
from rich.console import Console

from llm_jax.analysis import ablation, experts, plots
from llm_jax.analysis.documents import check_markers, publish, with_pictures
from llm_jax.analysis.report import compare, markdown_table, write_report
from llm_jax.assemble import experiment_programs
from llm_jax.branch import Branch
from llm_jax.checkpoints.restore import saved_steps
from llm_jax.core import config
from llm_jax.core.checks import check, did_you_mean
from llm_jax.core.files import write_atomically
from llm_jax.core.run_directory import RunDirectory
from llm_jax.core.source import Source
from llm_jax.data import known_files
from llm_jax.evals.specialisation import specialisation
from llm_jax.experiment import Experiment, load_ablation, load_experiment
from llm_jax.hosts import joined
from llm_jax.inference.generate import Generator
from llm_jax.interop import catalogue, initialisations, load_hf, save_hf
from llm_jax.models.families import SIZES
from llm_jax.models.summary import summary
from llm_jax.parity import table as parity
from llm_jax.parity.cell import WAYS
from llm_jax.parity.strategies import DEVICES
from llm_jax.planning import shardings
from llm_jax.sharding.partition import Layout
from llm_jax.trained import Trained
from llm_jax.training_run import run_training
from llm_jax.variants import run_variants
from llm_jax.verbs import Ablate, Convert, Experts, Families, Generate, Params, Parity, Report, Shardings, Show, Train


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
    _simulate(options.cpu_devices)
    with joined(options.hosts) as hosts:
        experiment = load_experiment(options.file, overrides)
        _keep_compiled_programs(options.cache_dir)
        branch = None if options.from_ is None else Branch.named(options.from_, options.runs_dir)
        with known_files.distrusted() if options.verify_data else contextlib.nullcontext():
            run = run_training(
                experiment,
                options.runs_dir,
                options.cache_dir,
                options.fresh,
                hosts,
                options.step,
                branch,
                Source.of_file(options.file),
                options.accept_changes,
            )
    if hosts.leads and _is_finished(run, experiment.steps):
        _say_where(run, experiment)


def _show(arguments: list[str]) -> None:
    options, overrides = _parse(Show, arguments)
    print(config.to_text(load_experiment(options.file, overrides)), end="")


def _generate(arguments: list[str]) -> None:
    options = _parse_all(Generate, arguments)
    trained = Trained.of(RunDirectory(options.run), options.step, options.best)
    tokenizer = trained.tokenizer
    generator = Generator(trained.model, options.sampling, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
    prompt = trained.experiment.prompt(tokenizer, options.prompt)
    decoder = tokenizer.stream(prompt)
    stream = generator.stream(trained.params, [prompt], options.new_tokens, options.seed)
    print(options.prompt, end="", flush=True)
    for tokens_B in stream:
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


def _experts(arguments: list[str]) -> None:
    options = _parse_all(Experts, arguments)
    trained = Trained.of(RunDirectory(options.run), options.step, options.best)
    found = specialisation(trained.model, trained.params, trained.held_out(options.cache_dir), trained.tokenizer)
    _console().print(experts.table(found))
    print(f"wrote {plots.save(plots.specialisation_figure(found), options.run / 'specialisation.png')}")


def _ablate(arguments: list[str]) -> None:
    options, overrides = _parse(Ablate, arguments)
    _simulate(options.cpu_devices)
    found = load_ablation(options.file, overrides)
    unknown = [name for name in options.only if name not in found.variants]
    check(not unknown, f"--only names {unknown}, and the variants are {list(found.variants)}: take some of those")
    chosen = {name: one for name, one in found.variants.items() if name in options.only or not options.only}
    if options.publish is not None:
        check_markers(options.publish, options.file.stem)
    _keep_compiled_programs(options.cache_dir)
    folder = options.runs_dir / options.file.stem
    results, unfinished = run_variants(chosen, options.seeds, folder, options.cache_dir, found.source)
    print(text := ablation.write(results, folder, found.report, unfinished))
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
    _simulate(DEVICES)
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
    options = _parse_all(Families, arguments)
    print(initialisations() if options.init else catalogue())


def _convert(arguments: list[str]) -> None:
    options = _parse_all(Convert, arguments)
    run = RunDirectory(options.source)
    if run.experiment_file.exists():
        trained = Trained.of(run, options.step, options.best)
        model, params, tokenizer = trained.model, trained.params, trained.tokenizer
    else:
        check((options.source / "config.json").exists(), f"{options.source} is neither a run nor a transformers folder")
        check(
            options.step is None and not options.best, "--step and --best choose a checkpoint of a run: leave them out"
        )
        (model, params), tokenizer = load_hf(options.source), options.source
    tokenizer = tokenizer if options.tokenizer else None
    save_hf(model, params, options.destination, options.family, options.dtype, tokenizer=tokenizer)
    print(f"wrote {options.destination}")


VERBS: dict[str, tuple[type, Callable[[list[str]], None]]] = {
    "train": (Train, _train),
    "show": (Show, _show),
    "generate": (Generate, _generate),
    "report": (Report, _report),
    "experts": (Experts, _experts),
    "families": (Families, _families),
    "ablate": (Ablate, _ablate),
    "params": (Params, _params),
    "shardings": (Shardings, _shardings),
    "parity": (Parity, _parity),
    "convert": (Convert, _convert),
}


_FIELDS = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(Experiment)]


def _overview() -> str:
    first_lines = {name: (kind.__doc__ or "").partition("\n")[0] for name, (kind, _) in VERBS.items()}
    verbs = "\n".join(f"  {name:<10} {line}" for name, line in first_lines.items())
    return f"usage: llm-jax VERB ...\n\n{verbs}\n\n`llm-jax VERB --help` explains a verb."


def _parse(kind: type, arguments: list[str]) -> tuple:
    """The verb's own options, and what is left over for the experiment that it names."""
    asks = [word for word in arguments if word in ("-h", "--help")]
    names_file = len(arguments) > len(asks) and not arguments[0].startswith("-")
    own = [word for word in arguments if word not in asks] if names_file else arguments
    options, rest = tyro.cli(kind, args=own, prog=f"llm-jax {kind.__name__.lower()}", return_unknown_args=True)
    known = ["--" + field.name.rstrip("_").replace("_", "-") for field in dataclasses.fields(kind)]
    for word in (word.split("=")[0] for word in rest):
        if word.startswith("--") and word not in _FIELDS and (hint := did_you_mean(word, known, 0.8)):
            raise ValueError(f"there is no option {word}{hint}")
    return options, rest + asks


def _parse_all(kind: type, arguments: list[str]):
    return tyro.cli(kind, args=arguments, prog=f"llm-jax {kind.__name__.lower()}")


def _simulate(cpu_devices: int | None) -> None:
    """Makes jax see this number of devices of the CPU and no others; it must not have seen any yet."""
    if cpu_devices is not None:
        check(cpu_devices >= 1, f"--cpu-devices is {cpu_devices}: simulate at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cpu_devices)


def _keep_compiled_programs(cache: Path) -> None:
    """Programs compiled once are read back by later runs; JAX_COMPILATION_CACHE_DIR names another place."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "jax").absolute()))


def _is_finished(run: RunDirectory, steps: int) -> bool:
    return max(saved_steps(run.checkpoints), default=0) == steps


def _say_where(run: RunDirectory, experiment: Experiment) -> None:
    try:
        report = f"Its report: {write_report(run.path)}"
    except OSError as error:  # the run is complete without it
        report = f"Its report cannot be written: {error}"
    prompt = shlex.quote(next(iter(experiment.samples.prompts), "TEXT"))
    generate = "" if experiment.tokenizer is None else f"  llm-jax generate {run.path} --prompt {prompt}\n"
    print(
        f"\nThe run is complete. {report}\n"
        "Next:\n"
        f"{generate}"
        f"  llm-jax report {run.path}\n"
        f"  tensorboard --logdir {run.tensorboard}    (pip install tensorboard)"
    )
