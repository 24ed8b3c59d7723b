"""Loss curves of a run as an inline SVG."""

from __future__ import annotations

import gc
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastunit.common.files import cache_dir

if "MPLCONFIGDIR" not in os.environ:
    try:
        Path.home()
    except RuntimeError:  # a user without a home, for whom Matplotlib raises an error
        os.environ["MPLCONFIGDIR"] = str(cache_dir() / "matplotlib")
from matplotlib import rc_context
from matplotlib.figure import Figure

from fastunit.report import groups

SMOOTH = 40  # the running mean spans 1/40 of a curve on either side
MOST_POINTS = 600  # per curve: more would not be visible and would enlarge the page

_INK = "#123456"  # placeholder for the page's text colour, which follows its light or dark theme


def curves_svg(records: list[dict[str, Any]]) -> str:
    """Return the loss curves as an inline SVG: raw values faint, a running mean over them.

    Losses that were not recorded have no panel; values that are not finite are left out.
    """

    curves = {
        group.title: {name: points for name in group.names if len(points := _points(records, name))}
        for group in groups.LOSSES
    }
    curves = {title: lines for title, lines in curves.items() if lines}
    rows = max(1, math.ceil(len(curves) / 3))
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "text.color": _INK}):
        figure = Figure(figsize=(11, 2.7 * rows), layout="constrained")
        for index, (title, lines) in enumerate(curves.items()):
            _draw_panel(figure.add_subplot(rows, 3, index + 1), title, lines)
        figure.savefig(buffer, format="svg", transparent=True)
    # A figure is a cycle of 20,000 objects; the collector alone lets several of them pile up, 4 MB
    # each, until they are a quarter of all objects.
    del figure
    gc.collect()
    svg = buffer.getvalue().replace(_INK, "currentColor")
    return svg[svg.index("<svg") :]


def _points(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return iterations and finite values of a loss, [points, 2]."""
    points = [(r["iteration"], r[name]) for r in records if name in r]
    return np.array([(x, y) for x, y in points if not isinstance(y, str)], float)


def _draw_panel(axes: Any, title: str, lines: Mapping[str, np.ndarray]) -> None:
    axes.set_title(title, fontsize=11)
    axes.tick_params(labelsize=8, colors=_INK, length=0)
    axes.grid(alpha=0.15, color=_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=_INK, alpha=0.4)
    for name, points in lines.items():
        x, y = points.T
        window = np.ones(1 + 2 * (len(y) // SMOOTH))
        # "same" pads with zeros; dividing by the number of values inside corrects the ends.
        mean = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
        shown = slice(None, None, math.ceil(len(y) / MOST_POINTS))
        (line,) = axes.plot(x[shown], mean[shown], label=name, linewidth=1.6)
        axes.plot(x[shown], y[shown], color=line.get_color(), alpha=0.3, linewidth=0.8)
    # not at the "best" place: on a slow machine Matplotlib warns that it takes a second
    axes.legend(fontsize=8, frameon=False, loc="upper right")
