"""`llm-jax show`: print an experiment."""

import dataclasses
from pathlib import Path

from llm_jax.cli.arguments import Arg, parse_with_overrides


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the resolved experiment as flat text, overrides applied."""

    file: Arg[Path]
    """Python file that defines experiment() -> Experiment."""


def run(arguments: list[str]) -> None:
    """Prints the experiment."""
    options, overrides = parse_with_overrides(Show, arguments)
    from llm_jax.core import config_text
    from llm_jax.experiment import load_experiment

    print(config_text.to_text(load_experiment(options.file, overrides)), end="")
