"""`llm-jax params`: parameters, FLOPs, cache and memory of a published model."""

import dataclasses

from llm_jax.cli.arguments import Arg, parse
from llm_jax.core.checks import check, did_you_mean


@dataclasses.dataclass(frozen=True)
class Params:
    """Say what a published model costs: parameters, FLOPs, cache and memory, from its config alone."""

    name: Arg[str]
    """Name of a size, such as llama2-7b; `llm-jax families` lists them."""
    length: int | None = None
    """Sequence length; the model's maximum if not given."""


def run(arguments: list[str]) -> None:
    """Prints the summary."""
    options = parse(Params, arguments)
    from llm_jax.models.families import SIZES
    from llm_jax.models.summary import summary

    check(
        options.name in SIZES,
        f"there is no size {options.name!r}{did_you_mean(options.name, SIZES)}; `llm-jax families` lists all",
    )
    model = SIZES[options.name]()
    for fact, value in summary(model, model.max_length if options.length is None else options.length).items():
        print(f"{fact:<24}{value}")
