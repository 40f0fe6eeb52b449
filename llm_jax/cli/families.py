"""`llm-jax families`: list the published models."""

import dataclasses

from llm_jax.cli.arguments import parse


@dataclasses.dataclass(frozen=True)
class Families:
    """List the published families and sizes, and how they are proven against transformers."""

    init: bool = False
    """Show instead what the parameters of each family are drawn from, and where that was published."""


def run(arguments: list[str]) -> None:
    """Prints them."""
    options = parse(Families, arguments)
    from llm_jax.interop import catalogue, initialisations

    print(initialisations() if options.init else catalogue())
