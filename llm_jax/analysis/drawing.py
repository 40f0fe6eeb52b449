"""Common parts of all figures: matplotlib Figure objects without a window or global state, their colours and axes.

Colours are those of Okabe & Ito, which can be distinguished with any kind of colour vision. Dashes differ too, so that
covered curves remain visible.
"""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
GREY = "#8C8C8C"
TEXT = "#333333"
TOKENS = "tokens seen"
_MAX_LEGEND = 8
_SMOOTHED_FRACTION = 50


def new_figure(title: str, ylabel: str, height: float = 3.2) -> tuple[Figure, Axes]:
    """A figure with one axes. `height` is in inches."""
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.add_subplot()
    dress(axes, title, ylabel)
    return figure, axes


def dress(axes: Axes, title: str, ylabel: str) -> None:
    """Sets title, label, colours and grid."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=TEXT)
    axes.set_ylabel(ylabel, color=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=TEXT)
    axes.grid(True, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def finish(axes: Axes, xlabel: str) -> None:
    """Sets up the axis of steps or tokens, and the legend. Call it after everything is drawn."""
    axes.set_xlabel(xlabel, color=TEXT)
    axes.margins(x=0.02)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # steps and tokens are integers
    axes.xaxis.set_major_formatter((lambda x, _: quantity(x)) if xlabel == TOKENS else "{x:,.0f}")
    entries = len(axes.get_legend_handles_labels()[0])
    if entries > _MAX_LEGEND:
        axes.figure.legend(loc="outside right upper", frameon=False, labelcolor=TEXT, fontsize=9)
    elif entries:
        axes.legend(frameon=False, labelcolor=TEXT)


def scale_log(axes: Axes) -> None:
    """Makes the y axis logarithmic, so that the first steps do not flatten the rest. Ticks are plain numbers."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_ticks(values.max() / values.min()))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _ticks(ratio: float) -> Locator:
    """Ticks of a logarithmic axis on which the largest value is `ratio` times the smallest."""
    if ratio < 2:
        return MaxNLocator(7)
    return LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)) if ratio < 12 else LogLocator(subs=(1, 2, 5))


def style(index: int) -> tuple[str, str]:
    """Colour and dashes of the run at `index`."""
    return COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]


def moving_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a fiftieth of the values, shorter at both ends. Ignores non-finite values."""
    half = len(values) // _SMOOTHED_FRACTION // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def quantity(value: float) -> str:
    """The value with three significant digits: 1.23k for 1230, then M, B (billions), T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG. Deterministic: equal figures give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    path.write_bytes(content.getvalue())
    return path
