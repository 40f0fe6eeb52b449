"""`llm-jax report`: describe runs."""

import dataclasses

from llm_jax.cli.arguments import Arg, parse


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the report of a run, or compare several runs in one table and plot."""

    runs: Arg[tuple[str, ...]]
    """Run directories."""
    output: str = "runs/comparison.md"
    """Markdown file for the comparison of several runs."""


def run(arguments: list[str]) -> None:
    """Writes the report and prints its path, or writes and prints the comparison."""
    options = parse(Report, arguments)
    from llm_jax.analysis.report import compare, write_report
    from llm_jax.core import paths

    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
    else:
        print(compare(options.runs, paths.at(options.output)))
