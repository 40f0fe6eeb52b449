"""Figures of gradient norms."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from llm_jax.analysis.drawing import finish, moving_mean, new_figure, scale_log, style
from llm_jax.analysis.runs import Curve, Run, labels

_MAX_GROUPS = 12
_BLOCK = re.compile(r"stack/segment_\d+/block_\d+/")
_ARRAY = re.compile(r"/(kernel|bias|scale|table)$")


def gradient_norm_figure(runs: Sequence[Run]) -> Figure:
    """Global gradient norm before clipping, against steps. Faint: every train record. Line: their moving mean."""
    figure, axes = new_figure("gradient norm", "norm before clipping")
    for index, (run, name) in enumerate(zip(runs, labels(runs), strict=True)):
        if "gradient_norm" in run.train:
            colour, dashes = style(index)
            steps, norms = run.train["step"], run.train["gradient_norm"]
            axes.plot(steps, norms, color=colour, linewidth=0.8, alpha=0.22)
            label = name if len(runs) > 1 else None
            axes.plot(steps, moving_mean(norms), dashes, color=colour, linewidth=1.8, label=label)
    finish(axes, "step")
    scale_log(axes)
    return figure


def parameter_norms_figure(run: Run) -> Figure:
    """Gradient norm of each group of parameters against steps, as a moving mean."""
    figure, axes = new_figure("gradient norm of parameters", "norm before clipping", height=4.4)
    for index, (name, norms) in enumerate(groups(run.parameter_norms).items()):
        colour, dashes = style(index)
        axes.plot(run.parameter_norms["step"], moving_mean(norms), dashes, color=colour, linewidth=1.5, label=name)
    finish(axes, "step")
    scale_log(axes)
    return figure


def groups(norms: Curve) -> Curve:
    """Norms of groups of parameters by name, from the norms of each parameter by path.

    A group consists of the parameters of one name in all layers, such as 'mixer/query', with kernel and bias. If there
    are more than twelve groups, names are shortened to their first parts, such as 'mixer'.
    """
    parts = {path: _ARRAY.sub("", _BLOCK.sub("", path)).split("/") for path in norms if path not in ("step", "time")}
    names: dict[str, str] = {}
    for length in range(max(map(len, parts.values()), default=0), 0, -1):
        names = {path: "/".join(found[:length]) for path, found in parts.items()}
        if len(set(names.values())) <= _MAX_GROUPS:
            break
    squares: Curve = {}
    for path, name in names.items():
        squares[name] = squares.get(name, 0.0) + np.square(norms[path])
    return {name: np.sqrt(square) for name, square in squares.items()}
