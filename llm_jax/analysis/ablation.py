"""Comparison of variants of an experiment, each trained with several seeds: which differences exceed the noise?"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llm_jax.analysis import drawing, plots
from llm_jax.analysis.report import markdown_table
from llm_jax.analysis.runs import NATS, LossUnit, Run, comparable, held_out_set, last, loss_unit, median, swept
from llm_jax.core.files import write_atomically

Results = dict[str, list[Run]]
"""Complete runs of each variant, one per seed, without variants that have none. The first variant is the baseline."""


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run of an ablation that did not finish, which is also a result."""

    variant: str
    seed: int
    how: str
    """'diverged', 'failed', 'killed', or 'running' if another process trains it."""
    updates: int
    """Step of its newest checkpoint."""
    why: str


Measure = Callable[[Run], float | None]
"""Computes a number from a run; None if the run did not record it."""


def table(
    results: Results,
    measures: dict[str, tuple[Measure, str]] | None = None,
    facts: dict[str, dict[str, str]] | None = None,
) -> str:
    """Mean and standard deviation over seeds of each variant's held-out loss, and its difference to the first variant.

    The loss is in nats per token, or in bits per byte if the variants have different tokenizers. The difference is that
    of the means. Its error is sqrt(s1^2 / n1 + s2^2 / n2) (Welch 1947).

    Args:
      measures: further columns, as (measure, number format). If some seeds have no value, the cell gives their number.
      facts: the last columns, for facts that all seeds of a variant share: their text by name of the variant.
    """
    measures, facts = measures or {}, facts or {}
    results, unit = _comparable(results)
    baseline, *_ = results.values()
    first = values(baseline, held_out(unit))
    rows = []
    for name, runs in results.items():
        losses = values(runs, held_out(unit))
        away = "-" if runs is baseline else f"{np.mean(losses) - np.mean(first):+.4f} ± {_error(losses, first):.4f}"
        found = [_cell(runs, measure, form) for measure, form in measures.values()]
        told = [texts[name] for texts in facts.values()]
        rows.append((name, f"{len(runs)}", spread(losses, ".4f"), away, *found, *told))
    return markdown_table(("variant", "seeds", unit.title, "to the first", *measures, *facts), rows)


def write(
    results: Results,
    folder: Path,
    report: Callable[[Results, Path], str] | None,
    unfinished: Sequence[Unfinished] = (),
) -> str:
    """Writes report.md into `folder` and returns its text.

    The text is that of `report`, which may write pictures into `folder`. By default it is a table of all variants,
    their loss curves, the differences for each seed and, for a sweep over one number, the final loss against that
    number. A table of the unfinished runs follows."""
    text = "\n\n".join([*([_complete(results, folder, report)] if results else []), *_unfinished(results, unfinished)])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.md", f"# {folder.name}\n\n{text}\n")
    return text


def _complete(results: Results, folder: Path, report: Callable[[Results, Path], str] | None) -> str:
    if report is None:
        text = f"{table(results, {'tokens/s': (tokens_per_second, ',.0f')})}\n\n" + "\n".join(
            _pictures(results, folder)
        )
    else:
        text = report(results, folder)
    return text


def _unfinished(results: Results, found: Sequence[Unfinished]) -> list[str]:
    """The section about runs that did not finish; empty if all did."""
    if not found:
        return []
    rows = [(one.variant, f"{one.seed}", one.how, f"{one.updates:,}", one.why) for one in found]
    without = [name for name in dict.fromkeys(one.variant for one in found) if name not in results]
    note = "Figures are of complete runs alone; a variant that diverges with some seeds looks better there than it is."
    parts = ["## Runs that did not finish", note]
    if without:
        parts.append(f"No complete run at all: {', '.join(without)}.")
    return [*parts, markdown_table(("variant", "seed", "outcome", "updates saved", "why"), rows)]


def differences(results: Results, measure: Measure) -> dict[str, list[float]]:
    """For every variant but the first, `measure` minus that of the first variant with the same seed, for each seed."""
    (_, baseline), *others = results.items()
    first = {run.fields["seed"]: measure(run) for run in baseline}
    pairs = {name: [(measure(run), first.get(run.fields["seed"])) for run in runs] for name, runs in others}
    return {name: [a - b for a, b in found if a is not None and b is not None] for name, found in pairs.items()}


def _pictures(results: Results, folder: Path) -> list[str]:
    """Draws the pictures of the report into `folder`. Returns the lines of Markdown that show them."""
    results, unit = _comparable(results)
    measure = held_out(unit)
    drawing.save(plots.variants_figure(results), folder / "loss.png")
    lines = ["![held-out loss of each variant](loss.png)"]
    found = differences(results, measure)
    if any(found.values()):
        name = next(iter(results))
        drawing.save(plots.differences_figure(found, name, unit.name), folder / "differences.png")
        lines.append(f"![difference to {name}, seed by seed](differences.png)")
    runs = [run for found in results.values() for run in found if measure(run) is not None]
    if (sweep := swept(runs)) is not None:
        losses = values(runs, measure)
        drawing.save(plots.sweep_figure(*sweep, losses, unit.name), folder / "sweep.png")
        lines.append("![final loss against the swept field](sweep.png)")
    return lines


def held_out_loss(run: Run) -> float | None:
    """Last loss on the held-out set, in nats per token. For runs with different tokenizers use `held_out`."""
    return held_out(NATS)(run)


def held_out(unit: LossUnit) -> Measure:
    """A measure of the last loss on the held-out set."""

    def measure(run: Run) -> float | None:
        name = held_out_set([run])
        return last(run.evals[name], unit.column) if name else None

    return measure


def tokens_per_second(run: Run) -> float | None:
    """Median training throughput."""
    return median(run.train, "tokens_per_second")


def trained_tail(column: str) -> Measure:
    """A measure of the mean over the last tenth of a column of the training records."""

    def measure(run: Run) -> float | None:
        found = run.train.get(column, np.empty(0))
        return float(np.mean(found[-max(1, len(found) // 10) :])) if len(found) else None

    return measure


def steps_to(loss: float) -> Measure:
    """A measure of the step at which the held-out loss, interpolated linearly, first reaches `loss`; None: never."""

    def measure(run: Run) -> float | None:
        name = held_out_set([run])
        if name is None:
            return None
        steps, losses = run.evals[name]["step"], run.evals[name]["loss"]
        (below,) = np.nonzero(losses <= loss)
        if not len(below):
            return None
        index = below[0]
        if index == 0:
            return float(steps[0])
        share = (losses[index - 1] - loss) / (losses[index - 1] - losses[index])
        return float(steps[index - 1] + share * (steps[index] - steps[index - 1]))

    return measure


def values(runs: Sequence[Run], measure: Measure) -> list[float]:
    """The measure of each run, without runs that have none."""
    return [value for value in map(measure, runs) if value is not None]


def spread(found: Sequence[float], form: str) -> str:
    """'mean ± standard deviation', with the unbiased estimate. A single number has no deviation."""
    if not found:
        return "-"
    mean = format(float(np.mean(found)), form)
    return f"{mean} ± {float(np.std(found, ddof=1)):{form}}" if len(found) > 1 else mean


def _comparable(results: Results) -> tuple[Results, LossUnit]:
    """The results after `comparable`, and the unit of their losses."""
    runs = [run for found in results.values() for run in found]
    alike = iter(comparable(runs))
    return {name: [next(alike) for _ in found] for name, found in results.items()}, loss_unit(runs)


def _cell(runs: Sequence[Run], measure: Measure, form: str) -> str:
    found = values(runs, measure)
    return spread(found, form) + f" ({len(found)} of {len(runs)})" * (0 < len(found) < len(runs))


def _error(one: Sequence[float], other: Sequence[float]) -> float:
    variances = [float(np.var(found, ddof=1)) / len(found) if len(found) > 1 else np.nan for found in (one, other)]
    return float(np.sqrt(sum(variances)))
