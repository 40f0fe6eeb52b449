"""`llm-jax train`: train an experiment."""

import contextlib
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from llm_jax.cli.arguments import Arg, asks_for_help, parse_with_overrides
from llm_jax.hosts.hosts_config import HostsConfig

if TYPE_CHECKING:
    from llm_jax.core.run_directory import RunDirectory
    from llm_jax.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it: the same command continues where it was stopped.

    A resumed run may have more steps if its schedule allows that, and may differ in log_every, evaluations, checkpoint,
    samples, hooks, trackers and sharding.

    Fields of the experiment are overridden by name: `llm-jax train FILE --steps 200 --optimizer.peak-lr 1e-3`;
    `llm-jax train FILE --help` lists them all.
    """

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""
    runs_dir: str = "runs"
    """Folder of run directories, or its address at gs:// (pip extra `gcs`)."""
    cache_dir: Path = Path(".cache")
    """Folder of trained tokenizers, tokenised data and compiled programs. It must be in a file system."""
    verify_data: bool = False
    """Read corpus and tokenised data again, even if size, times and inode of their files are unchanged."""
    fresh: bool = False
    """Delete an earlier run of that name and start from the beginning."""
    step: int | None = None
    """Resume from this checkpoint of the run instead of the newest. Later ones are renamed and kept."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN[:STEP]")] = None
    """Start a new run as a branch of another: with weights, optimizer state and data position of its checkpoint STEP,
    or of its newest one."""
    accept_changes: bool = False
    """Resume although the code of user-defined components has changed. The former code is kept in the run directory."""
    cpu_devices: int | None = None
    """Train on this number of simulated CPU devices, to test a mesh without the hardware; None: on the devices of the
    machine."""
    hosts: HostsConfig = HostsConfig()
    """Required only if several processes train together and no scheduler describes them."""


def run(arguments: list[str]) -> None:
    """Trains. Then prints the path of the report and commands for the run."""
    options, overrides = parse_with_overrides(Train, arguments)
    from llm_jax.experiment import load_experiment

    if asks_for_help(overrides):
        load_experiment(options.file, overrides)  # prints the help and exits, before this process joins others
    from llm_jax.analysis.report import write_report
    from llm_jax.branch import Branch
    from llm_jax.checkpoints.restore import saved_steps
    from llm_jax.cli import devices
    from llm_jax.core import paths
    from llm_jax.core.source import SourceCode
    from llm_jax.data import known_files
    from llm_jax.hosts.process_group import joined
    from llm_jax.training_run import run_training

    devices.simulate(options.cpu_devices)
    with joined(options.hosts) as hosts:
        experiment = load_experiment(options.file, overrides)
        devices.keep_compiled_programs(options.cache_dir)
        branch = None if options.from_ is None else Branch.named(options.from_, paths.at(options.runs_dir))
        with known_files.distrusted() if options.verify_data else contextlib.nullcontext():
            trained = run_training(
                experiment,
                options.runs_dir,
                options.cache_dir,
                options.fresh,
                hosts,
                options.step,
                branch,
                SourceCode.of_file(options.file),
                options.accept_changes,
            )
    if not hosts.leads or max(saved_steps(trained.checkpoints), default=0) != experiment.steps:
        return
    try:
        report = f"Its report: {write_report(trained.path)}"
    except OSError as error:  # the run is complete without it
        report = f"Its report cannot be written: {error}"
    print(f"\nThe run is complete. {report}\nNext:\n{_next_commands(trained, experiment)}")


def _next_commands(trained: "RunDirectory", experiment: "Experiment") -> str:
    prompt = shlex.quote(next(iter(experiment.samples.prompts), "TEXT"))
    generate = [] if experiment.tokenizer is None else [f"llm-jax generate {trained.path} --prompt {prompt}"]
    figures = [tracker.place(trained) for tracker in experiment.trackers]
    return "\n".join(f"  {line}" for line in [*generate, f"llm-jax report {trained.path}", *figures])
