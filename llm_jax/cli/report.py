"""`llm-jax report`: describe runs that are trained."""

import dataclasses

from llm_jax.cli.arguments import Arg, parse


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the report of a run, or compare several runs in one table and plot."""

    runs: Arg[tuple[str, ...]]
    """Run directories."""
    output: str = "runs/comparison.md"
    """Where the comparison of several runs goes."""


def run(arguments: list[str]) -> None:
    """Writes it, and prints where."""
    options = parse(Report, arguments)
    from llm_jax.analysis.report import compare, write_report
    from llm_jax.core import paths

    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
    else:
        print(compare(options.runs, paths.at(options.output)))
