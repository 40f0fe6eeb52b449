"""Figures of one or several runs. They are matplotlib Figure objects: no window, no global state.

Colours are those of Okabe & Ito, which readers with any kind of colour vision can tell apart; beyond seven runs the
dashes differ too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

from llm_jax.analysis.runs import Curve, Run, held_out_set, last, median
from llm_jax.evals.specialisation import CLASSES, Specialisation

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^v"
_GREY = "#8C8C8C"
_TEXT = "#333333"
_TOKENS = "tokens seen"
_MAX_LEGEND = 8
_SMOOTHED_FRACTION = 50


def loss_figure(runs: Sequence[Run]) -> Figure:
    """Loss against tokens seen, or against steps if a run did not record tokens.

    Faint: every train record. Line: their moving mean over a fiftieth of the run. Markers: evaluation sets.
    """
    figure, axes = _figure("loss", "loss (nats per token)", height=4.4)
    counter = "tokens" if all("tokens" in run.train for run in runs) else "step"
    several = len(runs) > 1
    sets = sorted({name for run in runs for name in run.evals})
    for index, run in enumerate(runs):
        _draw_training(axes, run, index, counter, label=run.name if several else "train")
        for number, name in enumerate(sets):
            colour = _style(index if several else 1 + number)[0]
            _draw_evaluation(axes, run, name, counter, colour, _MARKERS[number % len(_MARKERS)], joined=not several)
    if several:
        for number, name in enumerate(sets):
            axes.plot([], [], _MARKERS[number % len(_MARKERS)], color=_GREY, label=f"evaluated on {name}")
    _finish(axes, _TOKENS if counter == "tokens" else "step")
    _scale_loss(axes)
    return figure


def throughput_figure(runs: Sequence[Run]) -> Figure:
    """Tokens per second against steps, from zero up; dashed: the median of each run."""
    figure, axes = _figure("throughput", "tokens per second")
    for index, run in enumerate(runs):
        if (middle := median(run.train, "tokens_per_second")) is None:
            continue
        colour, dashes = _style(index)
        label = f"median {middle:,.0f}" if len(runs) == 1 else f"{run.name}, median {middle:,.0f}"
        axes.plot(run.train["step"], run.train["tokens_per_second"], dashes, color=colour, linewidth=1, alpha=0.8)
        axes.axhline(middle, color=colour, linewidth=1.5, linestyle=(0, (5, 3)), label=label)
    _finish(axes, "step")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def learning_rate_figure(runs: Sequence[Run]) -> Figure:
    """Learning rate against steps."""
    figure, axes = _figure("learning rate", "learning rate")
    for index, run in enumerate(runs):
        if "learning_rate" in run.train:
            colour, dashes = _style(index)
            label = run.name if len(runs) > 1 else None
            axes.plot(run.train["step"], run.train["learning_rate"], dashes, color=colour, linewidth=1.8, label=label)
    _finish(axes, "step")
    axes.set_ylim(bottom=0)
    return figure


def experts_figure(runs: Sequence[Run]) -> Figure:
    """What layers of experts did, against steps, in three panels: the load of the fullest expert over the mean, the
    share of choices dropped, and the entropy of a token's scores. Faint: each layer of a single run. Line: their mean.
    """
    panels = {
        "max_load": "max / mean load",
        "dropped": "share dropped",
        "entropy": "entropy (nats)",
    }
    figure = Figure(figsize=(7.5, 6.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(3, sharex=True), panels.items(), strict=True):
        _dress(axes, "experts" if name == "max_load" else "", label)
        for index, run in enumerate(runs):
            _draw_experts(axes, run, index, name, several=len(runs) > 1)
        _finish(axes, "step" if name == "entropy" else "")
        axes.margins(y=0.1)
        axes.set_ylim(bottom=1 if name == "max_load" else 0)
    return figure


def specialisation_figure(found: Specialisation) -> Figure:
    """Of every layer of experts a map: the share of each class of tokens that each expert serves."""
    layers = [(f"{path} {index}", *of) for path in found.counts for index, of in enumerate(found.layers(path))]
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(1.6 + 3.4 * columns, 0.9 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    largest = max(share_CE.max() for _, share_CE, _ in layers)
    for axes, (name, share_CE, bits) in zip(grid.flat, layers, strict=False):
        image = axes.imshow(share_CE, vmin=0, vmax=largest, cmap="Blues", aspect="auto")
        axes.set_title(f"{name.removeprefix('stack/')}: {bits:.3f} bits", fontsize=9, color=_TEXT)
        axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=8, color=_TEXT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=8, length=0)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    figure.supxlabel("expert", fontsize=10, color=_TEXT)
    figure.colorbar(image, ax=grid, label="share of a class's visits", shrink=0.9)
    return figure


def bits_per_byte_figure(run: Run) -> Figure:
    """The run among the other compressors of the same text: bars of bits per byte, the best on top."""
    name = held_out_set([run])
    bits = last(run.evals[name], "bits_per_byte") if name else None
    bars = [] if bits is None else [(f"{run.name} ({name})", bits, _COLOURS[0])]
    bars += [(name, value, "#BDBDBD") for name, value in run.baselines.items()]
    bars.sort(key=lambda bar: bar[1])
    labels, values, colours = zip(*bars, strict=True)
    figure, axes = _figure("bits per byte of held-out text", "", height=0.9 + 0.42 * len(bars))
    drawn = axes.barh(range(len(bars)), values, color=colours, height=0.68)
    axes.bar_label(drawn, labels=[f"{value:.3f}" for value in values], padding=4, color=_TEXT, fontsize=10)
    axes.set_yticks(range(len(bars)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(values))
    axes.set_xlabel("bits per byte (lower is better)", color=_TEXT)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG; equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a fiftieth of the values, shorter at both ends; non-finite values do not count."""
    half = len(values) // _SMOOTHED_FRACTION // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def quantity(value: float) -> str:
    """Three significant digits: 1.23k for 1230, then M, B (billions), T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def _draw_training(axes: Axes, run: Run, index: int, counter: str, label: str) -> None:
    if "loss" not in run.train:
        return
    colour, dashes = _style(index)
    axes.plot(run.train[counter], run.train["loss"], color=colour, linewidth=0.8, alpha=0.22)
    axes.plot(run.train[counter], moving_mean(run.train["loss"]), dashes, color=colour, linewidth=1.8, label=label)


def _draw_evaluation(axes: Axes, run: Run, name: str, counter: str, colour: str, marker: str, joined: bool) -> None:
    """Points of one evaluation set, joined by a line and named in the legend where there is but one run."""
    curve = run.evals.get(name, {})
    if "loss" not in curve:
        return
    (line,) = axes.plot(_positions(run, curve, counter), curve["loss"], marker, color=colour, zorder=3)
    line.set(markersize=6, markeredgecolor="white", markeredgewidth=0.8)
    if joined:
        line.set(linestyle="-", linewidth=1, label=name)


def _draw_experts(axes: Axes, run: Run, index: int, name: str, several: bool) -> None:
    mean, (colour, dashes) = f"experts/{name}", _style(index)
    for column in () if several else (c for c in run.train if c.startswith(f"{mean}/")):
        axes.plot(run.train["step"], moving_mean(run.train[column]), color=colour, linewidth=0.8, alpha=0.3)
    if mean in run.train:
        label = run.name if several else None
        axes.plot(run.train["step"], moving_mean(run.train[mean]), dashes, color=colour, linewidth=1.8, label=label)


def _positions(run: Run, curve: Curve, counter: str) -> np.ndarray:
    """Where evaluation records lie on the axis of the train records: tokens are those seen by their step."""
    if counter == "step" or "tokens" in curve:
        return curve[counter]
    steps, tokens = np.append(0.0, run.train["step"]), np.append(0.0, run.train["tokens"])
    return np.interp(curve["step"], steps, tokens)


def _style(index: int) -> tuple[str, str]:
    """Colour and dashes of the run at `index`."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _figure(title: str, ylabel: str, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, title, ylabel)
    return figure, axes


def _dress(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_TEXT)
    axes.set_ylabel(ylabel, color=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_TEXT)
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _finish(axes: Axes, xlabel: str) -> None:
    axes.set_xlabel(xlabel, color=_TEXT)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter((lambda x, _: quantity(x)) if xlabel == _TOKENS else "{x:,.0f}")
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > _MAX_LEGEND:
        axes.figure.legend(loc="outside right upper", frameon=False, labelcolor=_TEXT, fontsize=9)
    elif entries:
        axes.legend(frameon=False, labelcolor=_TEXT)


def _scale_loss(axes: Axes) -> None:
    """Logarithmic, so that the first steps do not flatten the rest; ticks are plain numbers."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_ticks(values.max() / values.min()))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _ticks(ratio: float) -> Locator:
    """Ticks of a logarithmic axis whose ends have this ratio."""
    if ratio < 2:
        return MaxNLocator(7)
    return LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)) if ratio < 12 else LogLocator(subs=(1, 2, 5))
