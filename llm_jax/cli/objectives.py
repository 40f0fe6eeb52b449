"""`llm-jax objectives`: which objective trains which architecture."""

import dataclasses

from llm_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class Objectives:
    """List the objectives, and say which architectures each of them trains.

    Example: llm-jax objectives --why
    """

    why: bool = False
    """Print for each pair that is not valid the reason, and what would work."""


def run(arguments: list[str]) -> None:
    """Prints the table."""
    options = parse(Objectives, arguments)
    from rich.console import Console

    from llm_jax.objectives import compatibility

    if not options.why:
        Console().print(compatibility.table())
        return
    for pair in compatibility.pairs():
        print(f"{pair.objective}, {pair.architecture}: {pair.refusal or 'yes'}")
