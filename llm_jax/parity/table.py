"""The parity matrix: computes and shows its cases."""

from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from llm_jax.core.checks import check
from llm_jax.parity.case import STEPS, WAYS, ParityCase, cell
from llm_jax.parity.models import MODELS
from llm_jax.parity.strategies import STRATEGIES

LOSS, GRADIENT = 1e-5, 1e-4
"""Maximum relative differences that another order of float32 sums may cause."""
LEARNED = 0.003
"""Least decrease of the loss per update."""


def matrix(
    chosen: Iterable[str] = MODELS,
    strategies: Iterable[str] = STRATEGIES,
    ways: Iterable[str] = ("loop",),
    steps: int = STEPS,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[ParityCase]:
    """Yields the cases of the given models, strategies and execution modes as they are computed.

    Raises:
      ValueError: if a name is unknown, or `steps` is less than 2.
    """
    check(steps > 1, f"steps is {steps}: a loss decreases in 2 updates or more")
    for names, known in ((chosen, MODELS), (strategies, STRATEGIES), (ways, WAYS)):
        unknown = [name for name in names if name not in known]
        check(not unknown, f"there is no {', '.join(unknown)}: choose from {', '.join(map(repr, known))}")
    for model in chosen:
        for name in strategies:
            for way in ways:
                progress(f"{model}, {name}, {way}")
                yield cell(model, name, STRATEGIES[name], way, steps)


def is_right(found: ParityCase) -> bool:
    """Whether the model learned, results equal those on one device, and the program has no faults."""
    # Compared one by one, because a maximum may ignore NaN.
    alike = found.first_loss <= LOSS and found.last_loss <= LOSS and found.gradient <= GRADIENT
    return alike and found.learned > LEARNED * found.steps and not found.faults


def title(cells: Iterable[ParityCase]) -> str:
    """What the figures of the cases are."""
    steps = max(found.steps for found in cells)
    return (
        "Relative differences from one device: first loss, gradient, "
        f"loss of update {steps}; in brackets the parts of parameters and optimizer state on a device"
    )


def rows(cells: Iterable[ParityCase]) -> list[tuple[str, ...]]:
    """A heading, and a row for each strategy and execution mode, with a column for each model."""
    cells = list(cells)
    chosen = list(dict.fromkeys(found.model for found in cells))
    shown = [("strategy", "run", *chosen, "sends, KiB a step")]
    for strategy, way in dict.fromkeys((found.strategy, found.way) for found in cells):
        row = {found.model: found for found in cells if (found.strategy, found.way) == (strategy, way)}
        first = next(iter(row.values()))
        sends = ", ".join(f"{kind} {moved / 2**10:.0f}" for kind, moved in first.collectives.items())
        shown.append((strategy, way, *(_text(row[model]) if model in row else "" for model in chosen), sends))
    return shown


def table(cells: Iterable[ParityCase]) -> Table:
    """The rows for a terminal, with failed cases in red."""
    cells = list(cells)
    headings, *found = rows(cells)
    shown = Table(*headings, title=title(cells))
    for row in found:
        shown.add_row(*(f"[red]{text}[/red]" if _WRONG in text else text for text in row))
    return shown


_WRONG = "WRONG: "


def _text(found: ParityCase) -> str:
    figures = " ".join(f"{value:.0e}" for value in (found.first_loss, found.gradient, found.last_loss))
    text = f"{figures} ({found.parameters:.2f}, {found.optimizer:.2f})"
    return text if is_right(found) else f"{_WRONG}{text} {'; '.join(found.faults) or 'not alike'}"
