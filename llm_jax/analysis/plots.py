"""Figures of the records of one or several runs. The legend names curves that are equal."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from llm_jax.analysis.drawing import (
    COLOURS,
    DASHES,
    GREY,
    TEXT,
    TOKENS,
    dress,
    finish,
    moving_mean,
    new_figure,
    scale_log,
    style,
)
from llm_jax.analysis.runs import BITS, NATS, Curve, Run, held_out_set, labels, last, loss_unit, median
from llm_jax.evals.specialisation import CLASSES, Specialisation

_MARKERS = "osD^v"
_MAX_FIXED_TICKS = 12
_LOG_AXIS_RATIO = 8


def loss_figure(runs: Sequence[Run]) -> Figure:
    """Loss in nats per token, see `_learning_figure`. For runs with different tokenizers, whose losses per token are
    not comparable, held-out bits per byte against steps."""
    unit = loss_unit(runs)
    return _learning_figure(runs, "loss", f"loss ({unit.name})", unit.column)


def perplexity_figure(runs: Sequence[Run]) -> Figure:
    """exp(loss in nats per token), see `_learning_figure`. For a mean over sets, exp of the mean loss."""
    return _learning_figure(runs, "perplexity", "perplexity per token", NATS.column, _exp)


def held_out_figure(run: Run) -> Figure:
    """Bits per byte of held-out text, see `_learning_figure`. Grey: other compressors on the test part."""
    others = {f"{name} on test": bits for name, bits in run.baselines.items()}
    return _learning_figure([run], BITS.title, BITS.name, BITS.column, others=others)


def _learning_figure(
    runs: Sequence[Run],
    title: str,
    ylabel: str,
    column: str,
    of: Callable[[np.ndarray], np.ndarray] = np.asarray,
    others: Mapping[str, float] | None = None,
) -> Figure:
    """`of(column)` of training and evaluations against tokens seen, or against steps if a run did not record tokens or
    the runs have different tokenizers.

    Faint: every train record. Line: their moving mean over a fiftieth of the run. Markers: evaluation sets. Grey:
    `others`, constants by name.
    """
    several = len(runs) > 1
    figure, axes = new_figure(title, ylabel, height=4.4)
    counter = "tokens" if loss_unit(runs) == NATS and all("tokens" in run.train for run in runs) else "step"
    sets = sorted({name for run in runs for name in run.evals})
    drawn = [of(run.train[column]) if column in run.train else None for run in runs]
    names = _equal_named(labels(runs) if several else ["train"], drawn)
    for index, (run, label) in enumerate(zip(runs, names, strict=True)):
        if several or drawn[index] is not None:
            _draw_training(axes, run, index, counter, drawn[index], label)
        for number, name in enumerate(sets):
            colour, marker = style(index if several else 1 + number)[0], _MARKERS[number % len(_MARKERS)]
            curve = run.evals.get(name, {})
            if column in curve:
                places, values = _positions(run, curve, counter), of(curve[column])
                joined = not several or drawn[index] is None
                line = _draw_evaluation(axes, places, values, colour, marker, joined, hollow=index % 2 == 1)
                if not several:
                    line.set_label(name)
    if several:
        for number, name in enumerate(sets):
            axes.plot([], [], _MARKERS[number % len(_MARKERS)], color=GREY, label=f"evaluated on {name}")
    for number, (name, value) in enumerate((others or {}).items()):
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=DASHES[1:][number % 3], zorder=1, label=name)
    finish(axes, TOKENS if counter == "tokens" else "step")
    scale_log(axes)
    return figure


def variants_figure(results: Mapping[str, Sequence[Run]], title: str = "held-out loss") -> Figure:
    """Held-out loss of variants against steps: mean over the runs of each, and a band of one standard deviation. In
    bits per byte if the variants have different tokenizers."""
    unit = loss_unit([run for runs in results.values() for run in runs])
    figure, axes = new_figure(title, f"loss ({unit.name})", height=4.4)
    evaluated = {label: runs for label, runs in results.items() if held_out_set(runs) is not None}
    curves = [_held_out_losses(runs, unit.column) for runs in evaluated.values()]
    names = _equal_named(list(evaluated), [losses for _, losses in curves])
    for index, (label, (steps, losses)) in enumerate(zip(names, curves, strict=True)):
        (colour, dashes), mean = style(index), losses.mean(axis=0)
        axes.plot(steps, mean, dashes, color=colour, linewidth=1.8, label=label)
        if len(losses) > 1:
            deviation = losses.std(axis=0, ddof=1)
            axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    finish(axes, "step")
    scale_log(axes)
    return figure


def differences_figure(differences: Mapping[str, Sequence[float]], baseline: str, unit: str) -> Figure:
    """Difference of each variant's final held-out loss to that of `baseline` with the same seed: a dot for each seed, a
    bar for the mean. Negative is better.

    Args:
      differences: by variant, one number for each seed. Variants without numbers are left out.
      unit: unit of the loss, such as 'nats per token'.
    """
    shown = {name: found for name, found in differences.items() if len(found)}
    title = f"final held-out loss minus {baseline}'s, seed by seed"
    figure, axes = new_figure(title, "", height=1.3 + 0.4 * len(shown))
    for index, found in enumerate(shown.values()):
        axes.plot(found, [index] * len(found), "o", color=COLOURS[0], alpha=0.6, markeredgewidth=0)
        axes.plot([np.mean(found)], [index], "|", color=COLOURS[1], markersize=20, markeredgewidth=2.5)
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=0)
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"difference ({unit}); dot: one seed, bar: mean", color=TEXT)
    return figure


def sweep_figure(field: str, values: Sequence[float], losses: Sequence[float], unit: str) -> Figure:
    """Final held-out loss against the swept field: a dot for every run, a line through the means of equal values.

    Args:
      field: path of the field in the experiment.
      values: the field's value in each run.
      losses: final held-out loss of each run. Non-finite losses are not drawn.
      unit: unit of the loss.
    """
    figure, axes = new_figure("final held-out loss", f"loss ({unit})", height=4.4)
    pairs = [(value, loss) for value, loss in zip(values, losses, strict=True) if np.isfinite(loss)]
    distinct = sorted({value for value, _ in pairs})
    means = [np.mean([loss for value, loss in pairs if value == one]) for one in distinct]
    axes.plot(distinct, means, "-", color=COLOURS[0], linewidth=1.8)
    axes.plot(*zip(*pairs, strict=True), "o", color=COLOURS[0], markeredgecolor="white", markeredgewidth=0.8)
    axes.set_xlabel(field, color=TEXT)
    if distinct[0] > 0 and distinct[-1] / distinct[0] >= _LOG_AXIS_RATIO:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if len(distinct) <= _MAX_FIXED_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(distinct))
        axes.xaxis.set_major_formatter("{x:g}")
    return figure


def throughput_figure(runs: Sequence[Run]) -> Figure:
    """Tokens per second against steps, on an axis from zero. Dashed: the median of each run."""
    figure, axes = new_figure("throughput", "tokens per second")
    for index, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        if (middle := median(run.train, "tokens_per_second")) is None:
            continue
        colour, dashes = style(index)
        label = f"median {middle:,.0f}" if len(runs) == 1 else f"{name}, median {middle:,.0f}"
        axes.plot(run.train["step"], run.train["tokens_per_second"], dashes, color=colour, linewidth=1, alpha=0.8)
        axes.axhline(middle, color=colour, linewidth=1.5, linestyle=(0, (5, 3)), label=label)
    finish(axes, "step")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,g}")
    return figure


def learning_rate_figure(runs: Sequence[Run]) -> Figure:
    """Learning rate against steps."""
    figure, axes = new_figure("learning rate", "learning rate")
    names = _equal_named(labels(runs), [run.train.get("learning_rate") for run in runs])
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        if "learning_rate" in run.train:
            colour, dashes = style(index)
            label = name if len(runs) > 1 else None
            axes.plot(run.train["step"], run.train["learning_rate"], dashes, color=colour, linewidth=1.8, label=label)
    finish(axes, "step")
    axes.set_ylim(bottom=0)
    return figure


def experts_figure(runs: Sequence[Run]) -> Figure:
    """Routing statistics of MoE layers against steps, in three panels: maximum load over mean load, fraction of dropped
    assignments, and entropy of a token's router scores. Faint: each layer of a single run. Line: their mean."""
    panels = {
        "max_load": "max / mean load",
        "dropped": "share dropped",
        "entropy": "entropy (nats)",
    }
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(3, sharex=True), panels.items(), strict=True):
        dress(axes, "experts" if name == "max_load" else "", label)
        for index, (run, of) in enumerate(zip(runs, labels(runs), strict=True)):
            _draw_experts(axes, run, index, name, label=of if len(runs) > 1 else None)
        finish(axes, "step" if name == "entropy" else "")
        axes.margins(y=0.1)
        axes.set_ylim(bottom=1 if name == "max_load" else 0)
    return figure


def specialisation_figure(found: Specialisation) -> Figure:
    """A heat map for every MoE layer: the fraction of each class of tokens that is routed to each expert."""
    layers = [(f"{path} {index}", *of) for path in found.counts for index, of in enumerate(found.layers(path))]
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(1.6 + 3.4 * columns, 0.9 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    largest = max(share_CE.max() for _, share_CE, _ in layers)
    images = []
    for axes, (name, share_CE, bits) in zip(grid.flat, layers, strict=False):
        images.append(axes.imshow(share_CE, vmin=0, vmax=largest, cmap="Blues", aspect="auto"))
        axes.set_title(f"{name.removeprefix('stack/')}: {bits:.3f} bits", fontsize=9, color=TEXT)
        axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=8, color=TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8, length=0)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    figure.supxlabel("expert", fontsize=10, color=TEXT)
    figure.colorbar(images[0], ax=grid, label="share of a class's visits", shrink=0.9)
    return figure


def bits_per_byte_figure(run: Run) -> Figure:
    """Bars of bits per byte of the run and of other compressors of the same text, lowest on top."""
    name = held_out_set([run])
    bits = last(run.evals[name], "bits_per_byte") if name else None
    bars = [] if bits is None else [(f"{run.name} ({name})", bits, COLOURS[0])]
    bars += [(name, value, "#BDBDBD") for name, value in run.baselines.items()]
    bars.sort(key=lambda bar: bar[1])
    labels, values, colours = zip(*bars, strict=True)
    figure, axes = new_figure("bits per byte of held-out text", "", height=0.9 + 0.42 * len(bars))
    drawn = axes.barh(range(len(bars)), values, color=colours, height=0.68)
    axes.bar_label(drawn, labels=[f"{value:.3f}" for value in values], padding=4, color=TEXT, fontsize=10)
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_xlabel("bits per byte (lower is better)", color=TEXT)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _exp(values: np.ndarray) -> np.ndarray:
    """exp, with inf and no warning on overflow."""
    with np.errstate(over="ignore"):
        return np.exp(values)


def _draw_training(axes: Axes, run: Run, index: int, counter: str, losses: np.ndarray | None, label: str) -> None:
    """Draws the training records of a run. Without losses only its entry in the legend."""
    colour, dashes = style(index)
    if losses is None:
        axes.plot([], [], dashes, color=colour, linewidth=1.8, label=label)
        return
    axes.plot(run.train[counter], losses, color=colour, linewidth=0.8, alpha=0.22)
    axes.plot(run.train[counter], moving_mean(losses), dashes, color=colour, linewidth=1.8, label=label)


def _draw_evaluation(
    axes: Axes, places: np.ndarray, losses: np.ndarray, colour: str, marker: str, joined: bool, hollow: bool
) -> Line2D:
    """Draws the points of one evaluation set."""
    (line,) = axes.plot(places, losses, marker, color=colour, zorder=3)
    if hollow:
        line.set(markersize=9, markerfacecolor="none", markeredgewidth=1.5)
    else:
        line.set(markersize=6, markeredgecolor="white", markeredgewidth=0.8)
    if joined:
        line.set(linestyle="-", linewidth=1)
    return line


def _draw_experts(axes: Axes, run: Run, index: int, name: str, label: str | None) -> None:
    mean, (colour, dashes) = f"experts/{name}", style(index)
    for column in () if label else (c for c in run.train if c.startswith(f"{mean}/")):
        axes.plot(run.train["step"], moving_mean(run.train[column]), color=colour, linewidth=0.8, alpha=0.3)
    if mean in run.train:
        axes.plot(run.train["step"], moving_mean(run.train[mean]), dashes, color=colour, linewidth=1.8, label=label)


def _positions(run: Run, curve: Curve, counter: str) -> np.ndarray:
    """Positions of evaluation records on the x axis. Missing token counts are interpolated from the train records."""
    if counter == "step" or "tokens" in curve:
        return curve[counter]
    steps, tokens = np.append(0.0, run.train["step"]), np.append(0.0, run.train["tokens"])
    return np.interp(curve["step"], steps, tokens)


def _equal_named(names: Sequence[str], curves: Sequence[np.ndarray | None]) -> list[str]:
    """The names. If a curve equals an earlier one, and so covers it, its name mentions the earlier one."""
    shown = []
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        equal = (
            other
            for other, earlier in zip(names[:index], curves, strict=False)
            if curve is not None and earlier is not None and np.array_equal(curve, earlier, equal_nan=True)
        )
        first = next(equal, None)
        shown.append(name if first is None else f"{name} (equal to {first})")
    return shown


def _held_out_losses(runs: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps [n], losses [runs, n]) at the steps at which all runs were evaluated."""
    name = held_out_set(runs)
    curves = [] if name is None else [run.evals[name] for run in runs if run.evals]
    steps = functools.reduce(np.intersect1d, [curve["step"] for curve in curves])
    return steps, np.array([_column(curve, column)[np.isin(curve["step"], steps)] for curve in curves])


def _column(curve: Curve, name: str) -> np.ndarray:
    """A column of a curve; nan if the run did not record it."""
    return curve.get(name, np.full(len(curve["step"]), np.nan))
