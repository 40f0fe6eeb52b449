"""`llm-jax families`: list the published models."""

import dataclasses

from llm_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class Families:
    """List the published families and sizes, and how they are proven against transformers."""

    init: bool = False
    """Show instead the initialisation of each family's parameters, and its source."""


def run(arguments: list[str]) -> None:
    """Prints the list."""
    options = parse(Families, arguments)
    from llm_jax.interop import catalogue, initialisations

    print(initialisations() if options.init else catalogue())
