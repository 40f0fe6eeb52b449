"""`llm-jax parity`: compare the strategies with one device."""

import dataclasses
import json
import shlex
from datetime import date
from pathlib import Path

from llm_jax.cli.arguments import parse
from llm_jax.core.checks import check


@dataclasses.dataclass(frozen=True)
class Parity:
    """Train small models by every strategy on eight simulated devices, and compare with one device."""

    models: tuple[str, ...] = ()
    """Models to train: decoder, encoder, encoder-decoder, "encoder-decoder, spans", hybrid, mixture; all if none is
    given."""
    strategies: tuple[str, ...] = ()
    """Strategies to train them with, such as 'FSDP x tensor'; all if none is given."""
    ways: tuple[str, ...] = ("loop",)
    """Execution modes: loop over layers, unrolled, remat, accumulated; `all` for each."""
    steps: int = 10
    """Updates of each training run; rounding differences grow with them."""
    output: Path | None = None
    """JSON file for all measurements."""
    publish: Path | None = None
    """Markdown file into which the table is written, between <!-- parity --> and <!-- /parity -->."""


def run(arguments: list[str]) -> None:
    """Prints the table. Raises ValueError if a case is wrong."""
    options = parse(Parity, arguments)
    from rich.console import Console

    from llm_jax.analysis.markdown import check_markers, publish
    from llm_jax.analysis.report import markdown_table
    from llm_jax.cli import devices
    from llm_jax.cli.terminal import console
    from llm_jax.core.files import write_atomically
    from llm_jax.parity import table
    from llm_jax.parity.case import WAYS
    from llm_jax.parity.models import MODELS
    from llm_jax.parity.strategies import DEVICES, STRATEGIES

    if options.publish is not None:
        check_markers(options.publish, "parity")
    devices.simulate(DEVICES)
    with Console(stderr=True).status("parity") as status:
        ways = tuple(WAYS) if options.ways == ("all",) else options.ways
        chosen = options.models or MODELS, options.strategies or STRATEGIES, ways
        cells = list(table.matrix(*chosen, options.steps, status.update))
    if options.output is not None:
        write_atomically(options.output, json.dumps([dataclasses.asdict(found) for found in cells], indent=1))
    console().print(table.table(cells))
    if options.publish is not None:
        headings, *found = table.rows(cells)
        text = f"{date.today()}. {table.title(cells)}.\n\n{markdown_table(headings, found)}"
        publish(options.publish, "parity", f"`{shlex.join(['llm-jax', 'parity', *arguments])}`\n\n{text}")
    wrong = [found for found in cells if not table.is_right(found)]
    check(not wrong, f"{len(wrong)} of {len(cells)} cells differ from one device, or are not what they say")
