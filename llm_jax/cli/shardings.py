"""`llm-jax shardings`: how an experiment is sharded over devices."""

import dataclasses
from pathlib import Path

from llm_jax.cli.arguments import Arg, parse_with_overrides


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Say where each parameter of an experiment lies and what a device holds, before anything is allocated.

    Fields of the experiment are overridden by name, as for `train`.
    """

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""
    devices: int | None = None
    """Number of devices; that of this machine if not given."""


def run(arguments: list[str]) -> None:
    """Prints the table."""
    options, overrides = parse_with_overrides(Shardings, arguments)
    from llm_jax.experiment import load_experiment

    experiment = load_experiment(options.file, overrides)  # a request for help ends here, before the slow imports
    import jax

    from llm_jax.assemble import experiment_programs
    from llm_jax.cli.terminal import console
    from llm_jax.planning import shardings
    from llm_jax.sharding.partition import Layout

    devices = jax.device_count() if options.devices is None else options.devices
    console().print(shardings.table(experiment_programs(experiment, Layout.abstract(experiment.sharding, devices))))
