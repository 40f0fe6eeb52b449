"""report.md of a run, and the comparison of several runs. All numbers come from the records in run directories."""

import collections
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llm_jax.analysis import drawing, gradients, plots
from llm_jax.analysis.runs import (
    BITS,
    NATS,
    LossUnit,
    Run,
    described,
    differences,
    held_out_set,
    labels,
    last,
    load_run,
    load_runs,
    loss_unit,
    median,
    setting,
    swept,
)
from llm_jax.core.checks import check
from llm_jax.core.files import write_atomically
from llm_jax.core.run_directory import RunDirectory

_MAX_COLUMNS = 8
_TAIL_FRACTION = 50
_FORMATS: dict[str, Callable[[float], str]] = {
    "steps": "{:,.0f}".format,
    "tokens": drawing.quantity,
    "train loss": "{:.4f}".format,
    "held-out loss": "{:.4f}".format,
    "bits per byte": "{:.4f}".format,
    "tokens/s": "{:,.0f}".format,
    "time": lambda value: _duration(value),
}
_PER_TOKEN = ("train loss", "held-out loss")
_NOTES: dict[LossUnit, str] = {
    NATS: "Losses are in nats per token",
    BITS: "The runs have different tokenizers, so that their losses per token do not compare: see bits per byte",
}
_NOTED = {
    "loss": "Faint: every train record. Line: their moving mean over a fiftieth of the run.",
    "parameter_norms": "The norm over all layers, of every group of parameters; moving means as above.",
    "experts": "Faint: each layer of experts. Line: the mean over the layers.",
}
"""Captions of plots, by name."""
_SPREAD = ("train loss", "held-out loss", "bits per byte", "tokens/s")


def write_report(run_dir: str | Path) -> Path:
    """Writes report.md and its plots (in `plots/`) into a run directory. Returns the path of the report.

    Raises:
      ValueError: if `run_dir` is not a run directory.
    """
    run = load_run(run_dir)
    parts = [f"# {run.name}", _summary(run), *_compression(run), *_curves(run), *_sample(run)]
    parts += ["## Damaged files", "\n".join(f"- {message}" for message in run.damage)] if run.damage else []
    parts += ["## What made this run", _facts(run), _details("Resolved experiment", run.experiment)]
    report = RunDirectory(run.path).report
    write_atomically(report, "\n\n".join(parts) + "\n")
    return report


def compare(runs: Sequence[str | Path], output: Path) -> str:
    """Writes one table and one plot of several runs, and returns the Markdown text.

    The table's columns are the fields in which the experiments differ, then the final metrics. The plot is a PNG with
    the name of `output` in the same folder. Runs that differ only in seed and name are also summarised by their mean
    and standard deviation (the unbiased estimate, over runs).

    Args:
      runs: run directories.
      output: the Markdown file to write.

    Raises:
      ValueError: if there are no runs, or one of them is not a run directory.
    """
    check(len(runs) > 0, "there are 0 runs to compare: name at least one run directory")
    loaded = load_runs(runs)
    parts = ["# Comparison of runs", *_comparison(loaded), *_seeds(loaded)]
    if any("loss" in curve for run in loaded for curve in (run.train, *run.evals.values())):
        picture = drawing.save(plots.loss_figure(loaded), output.with_suffix(".png"))
        parts.append(f"![loss of the runs]({picture.name})")
    if (sweep := _sweep(loaded)) is not None:
        picture = drawing.save(sweep, output.with_name(f"{output.stem}_sweep.png"))
        parts.append(f"![final loss against the swept field]({picture.name})")
    text = "\n\n".join(parts) + "\n"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    return text


def _summary(run: Run) -> str:
    """One paragraph: steps, tokens, time, throughput, and final losses."""
    metrics = _metrics(run, held_out := held_out_set([run]))
    found = {name: _FORMATS[name](value) for name, value in metrics.items() if value is not None}
    if "steps" not in found:
        return "This run has recorded no training step yet."
    text = f"Trained for {found['steps']} steps"
    if "tokens" in found:
        text += f" on {found['tokens']} tokens"
    text += f"; {found['time']} from the first record to the last"
    if "tokens/s" in found:
        text += f", at a median of {found['tokens/s']} tokens/s"
    if (mfu := median(run.train, "mfu")) is not None:
        text += f" (MFU {mfu:.1%})"
    if "train loss" in found:
        text += f". The training loss ended at {found['train loss']} nats per token ({_records(_tail(run)[1])})"
    if "held-out loss" in found and held_out is not None:
        text += (
            f". On the held-out set {described([run], held_out)} the loss is {found['held-out loss']} nats per token"
        )
    if metrics["bits per byte"] is not None:
        text += f", which is {metrics['bits per byte']:.3f} bits per byte{_verdict(run, metrics['bits per byte'])}"
    if len(starts := run.card.get("starts", [])) > 1:
        text += f". The run was started {len(starts)} times; pauses between the starts count as time"
    return text + "."


def _verdict(run: Run, bits: float) -> str:
    """How the run compares with the baselines, as the end of a sentence."""
    better = [name for name, value in run.baselines.items() if bits < value]
    worse = [name for name, value in run.baselines.items() if bits >= value]
    clauses = [f"fewer than {_listed(better)}"] * bool(better) + [f"not fewer than {_listed(worse)}"] * bool(worse)
    return ": " + ", but ".join(clauses) if clauses else ""


def _compression(run: Run) -> list[str]:
    """Table and bars of held-out bits per byte on the same text; empty if the run recorded none."""
    found = [(name, bits, "", "") for name, bits in run.baselines.items()]
    name = held_out_set([run])
    if name and (bits := last(run.evals[name], "bits_per_byte")) is not None:
        curve = run.evals[name]
        loss, step = _written("held-out loss", last(curve, "loss")), _written("steps", last(curve, "step"))
        found.append((f"**{run.name}** on `{name}`", bits, loss, step))
    if not found:
        return []
    rows = [(name, f"{bits:.3f}", loss, step) for name, bits, loss, step in sorted(found, key=lambda entry: entry[1])]
    pictures = {"bits_per_byte": plots.bits_per_byte_figure}
    if any(np.isfinite(curve.get(BITS.column, np.empty(0))).sum() > 1 for curve in run.evals.values()):
        pictures["held_out"] = plots.held_out_figure
    for name, figure in pictures.items():
        drawing.save(figure(run), run.path / "plots" / f"{name}.png")
    return [
        "## Held-out bits per byte",
        markdown_table(("", "bits per byte", "loss (nats per token)", "step"), rows),
        *(f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in pictures),
    ]


def _curves(run: Run) -> list[str]:
    """The plots of the training records."""
    figures = {
        "loss": ("loss" in run.train, plots.loss_figure),
        "perplexity": ("loss" in run.train, plots.perplexity_figure),
        "gradient_norm": ("gradient_norm" in run.train, gradients.gradient_norm_figure),
        "parameter_norms": (bool(run.parameter_norms), lambda runs: gradients.parameter_norms_figure(*runs)),
        "throughput": ("tokens_per_second" in run.train, plots.throughput_figure),
        "learning_rate": ("learning_rate" in run.train, plots.learning_rate_figure),
        "experts": ("experts/max_load" in run.train, plots.experts_figure),
    }
    drawn = []
    for name, (recorded, figure) in figures.items():
        if recorded:
            drawing.save(figure([run]), run.path / "plots" / f"{name}.png")
            drawn += [f"![{name.replace('_', ' ')}](plots/{name}.png)", *filter(None, [_NOTED.get(name)])]
    return ["## Curves", *drawn] if drawn else []


def _sample(run: Run) -> list[str]:
    if not run.samples:
        return []
    step = int(run.samples[-1].stem.removeprefix("step_"))
    return [f"## Sample at step {step:,}", _fenced(run.samples[-1].read_bytes().decode(errors="replace"))]


def _facts(run: Run) -> str:
    """All known facts on the card about the run's last start, one row per fact."""
    if not run.facts:
        return "This run has no card.json."
    facts = dict(run.facts)
    peak, source = facts.pop("peak_flops", None), facts.pop("peak_flops_source", None)
    rows = [("starts", f"{len(run.card['starts'])}"), *_flat("", facts)]
    if peak is not None:
        rows.append(("peak FLOP/s", f"{peak:.4g} per device ({source})"))
    return markdown_table(("fact", "value"), rows)


def _flat(prefix: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _flat(f"{name}: ", value)
        elif value not in (None, "", []):
            rows.append((name, _fact(key, value)))
    return rows


def _fact(key: str, value: Any) -> str:
    if isinstance(value, list):
        return shlex.join(map(str, value)) if key == "command" else ", ".join(map(str, value))
    if isinstance(value, (int, float)) and abs(value) >= 10_000:
        return f"{value:,.0f} ({drawing.quantity(value)})"
    return str(value)


def _comparison(runs: Sequence[Run]) -> list[str]:
    """The table of all runs. If experiments differ in many fields, these are in a second table."""
    names, changed, held_out = labels(runs), differences(runs, ignore=["name"]), held_out_set(runs)
    metrics = [_metrics(run, held_out) for run in runs]
    unit = loss_unit(runs)
    shown = [metric for metric in _FORMATS if unit == NATS or metric not in _PER_TOKEN]
    recorded = [metric for metric in shown if any(values[metric] is not None for values in metrics)]
    columns = changed if len(changed) <= _MAX_COLUMNS else []
    rows = [
        (name, *(setting(run, path) for path in columns), *(_written(metric, values[metric]) for metric in recorded))
        for name, run, values in zip(names, runs, metrics, strict=True)
    ]
    note = _NOTES[unit] + (f"; held out is the set {described(runs, held_out)}." if held_out else ".")
    parts = [markdown_table(("run", *columns, *recorded), rows), note]
    if changed != columns:
        rows = [(path, *(setting(run, path) for run in runs)) for path in changed]
        parts += ["## Differences between the experiments", markdown_table(("field", *names), rows)]
    return parts


def _sweep(runs: Sequence[Run]) -> Figure | None:
    """Final held-out loss against the field that the runs sweep over; None if they are not a sweep."""
    found, name = swept(runs), held_out_set(runs)
    if found is None or name is None:
        return None
    unit = loss_unit(runs)
    losses = [last(run.evals.get(name, {}), unit.column) for run in runs]
    return plots.sweep_figure(*found, [np.nan if loss is None else loss for loss in losses], unit.name)


def _seeds(runs: Sequence[Run]) -> list[str]:
    """Mean and standard deviation of each metric over runs of one tokenizer that differ only in seed and name."""
    groups: dict[tuple, list[int]] = collections.defaultdict(list)
    for index, run in enumerate(runs):
        same = tuple((path, text) for path, text in run.fields.items() if path not in ("seed", "name"))
        groups[run.tokenizer, same].append(index)
    names, held_out = labels(runs), held_out_set(runs)
    shown = [metric for metric in _SPREAD if loss_unit(runs) == NATS or metric not in _PER_TOKEN]
    rows = []
    for group in groups.values():
        if len(group) > 1:
            metrics = [_metrics(runs[index], held_out) for index in group]
            spreads = [_spread(metric, [values[metric] for values in metrics]) for metric in shown]
            rows.append((_listed([names[index] for index in group]), f"{len(group)}", *spreads))
    if not rows:
        return []
    return ["## Mean ± standard deviation over seeds", markdown_table(("runs", "n", *shown), rows)]


def _metrics(run: Run, held_out: str | None) -> dict[str, float | None]:
    """Final metrics of a run. A metric that the run did not record is None."""
    evaluation = {} if held_out is None else run.evals.get(held_out, {})
    return {
        "steps": last(run.train, "step"),
        "tokens": last(run.train, "tokens"),
        "train loss": _tail(run)[0],
        "held-out loss": last(evaluation, "loss"),
        "bits per byte": last(evaluation, "bits_per_byte"),
        "tokens/s": median(run.train, "tokens_per_second"),
        "time": run.seconds,
    }


def _tail(run: Run) -> tuple[float | None, int]:
    """Mean train loss of the last fiftieth of the records, and their number; (None, 0) without records."""
    losses = run.train.get("loss", np.empty(0))
    number = max(1, len(losses) // _TAIL_FRACTION)
    return (float(np.mean(losses[-number:])), number) if len(losses) else (None, 0)


def _records(number: int) -> str:
    return "the last record" if number == 1 else f"mean of the last {number} records"


def _spread(metric: str, values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return "-"
    return f"{_written(metric, float(np.mean(found)))} ± {_written(metric, float(np.std(found, ddof=1)))}"


def _written(metric: str, value: float | None) -> str:
    return "-" if value is None else _FORMATS[metric](value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. Cells may hold any text, which is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str) -> str:
    """The text as a code block. Its fence is longer than any run of backticks in the text."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _details(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{_fenced(text)}\n\n</details>"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
