"""Parses the arguments of a command into its options and overrides of its experiment."""

import dataclasses
from typing import TypeVar

import tyro

from llm_jax.core.checks import did_you_mean

Options = TypeVar("Options")

Arg = tyro.conf.Positional


def parse(kind: type[Options], arguments: list[str]) -> Options:
    """The options of the command whose dataclass is `kind`.

    Raises:
      SystemExit: after the help, and for invalid arguments.
    """
    return tyro.cli(kind, args=arguments, prog=_program(kind))


def parse_with_overrides(kind: type[Options], arguments: list[str]) -> tuple[Options, list[str]]:
    """The options of a command whose first argument is an experiment file, and the remaining arguments, which are
    overrides of the experiment. If a file is given, a request for help is among the latter, because the help then shows
    the fields of the experiment.

    Raises:
      ValueError: for a misspelt option of the command.
      SystemExit: as `parse`.
    """
    asks = [word for word in arguments if word in ("-h", "--help")]
    names_file = len(arguments) > len(asks) and not arguments[0].startswith("-")
    own = [word for word in arguments if word not in asks] if names_file else arguments
    options, rest = tyro.cli(kind, args=own, prog=_program(kind), return_unknown_args=True)
    known = _flags(kind)
    for word in (word.split("=")[0] for word in rest):
        if word.startswith("--") and (hint := did_you_mean(word, known, 0.8)) and word not in _flags_of_experiment():
            raise ValueError(f"there is no option {word}{hint}")
    return options, rest + asks


def asks_for_help(overrides: list[str]) -> bool:
    """Whether the overrides contain a request for help."""
    return not {"-h", "--help"}.isdisjoint(overrides)


def _program(kind: type) -> str:
    return f"llm-jax {kind.__name__.lower()}"


def _flags(kind: type) -> list[str]:
    """The options for the fields of a dataclass."""
    return ["--" + field.name.rstrip("_").replace("_", "-") for field in dataclasses.fields(kind)]


def _flags_of_experiment() -> list[str]:
    from llm_jax.experiment import Experiment

    return _flags(Experiment)
