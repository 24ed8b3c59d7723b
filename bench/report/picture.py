"""A report's picture: throughput, training steps of all contenders, ablations.

Throughput bars show how many times as fast as the baseline fastunit is, all others times relative
to fastunit's in the same rounds, so that all sizes fit one linear axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.report import tables, throughput
from fastunit.common.errors import DataError

COLOURS = ("#0b6e4f", "#9aa5b8", "#e09f3e", "#5c4d7d")  # ours first
FLOOR_COLOUR, RATIO_COLOUR = "#c1121f", "#2a6f97"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
ROW_INCHES, MARGIN_INCHES = 0.24, 0.9
GAP = 0.7  # rows between groups
DPI = 140

Result = Mapping[str, Any]


def shows(results: Sequence[Result]) -> bool:
    """Return whether the results contain anything that `draw` shows."""
    return bool(_panels(results))


def draw(results: Sequence[Result], path: Path, heading: str = "") -> None:
    """Write a PNG; raises DataError if the results contain nothing that it shows."""
    panels = _panels(results)
    if not panels:
        raise DataError("no picture: the results hold no throughput, no bench_ablation")
    heights = [MARGIN_INCHES + ROW_INCHES * rows for _, _, rows in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, sum(heights)), layout="constrained")
        figure.suptitle(heading, fontsize=9)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (found, panel, _) in zip(axes, panels, strict=True):
            panel(axis, found)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    path.write_bytes(buffer.getvalue())


def _panels(results: Sequence[Result]) -> list[tuple[list[Result], Callable, float]]:
    """Return each panel's results, drawing function and number of rows; empty ones are left out."""
    panels: list[tuple[list[Result], Callable, float]] = []
    if found := [result for result in results if throughput.timed(result)]:
        panels.append((found, _draw_throughput, 2 * len(found)))
    drawn = {"bench_opponents": _draw_steps, "bench_ablation": _draw_ablation}
    for function, panel in drawn.items():
        if found := [result for result in results if tables.function(result) == function]:
            rows = sum(len(result["extra_info"]["opponents"]) + GAP for result in found)
            panels.append((found, panel, rows))
    return panels


def _draw_throughput(axis: Axes, results: Sequence[Result]) -> None:
    """Draw a bar for each comparison with the baseline: how many times as fast, p20 to p80."""
    ticks = []
    for place, result in enumerate(results):
        facts = result["extra_info"]
        ratio = facts["baseline_ratio"]
        low, high = facts.get("baseline_spread", (ratio, ratio))  # older runs have none
        axis.barh(place, ratio, color=RATIO_COLOUR, height=0.6)
        spread = [[max(0.0, ratio - low)], [max(0.0, high - ratio)]]
        axis.errorbar(ratio, place, xerr=spread, color="black", capsize=3, lw=1)
        axis.annotate(f"  {throughput.line(result)}", (high, place), va="center", fontsize=9)
        ticks.append((place, f"{throughput.title(result)}: {throughput.case(result)}"))
    axis.set_title("How many times as fast as the baseline, which is 1")
    _finish(axis, ticks, len(results) - 0.4 + GAP)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.6)  # room for the words


def _draw_steps(axis: Axes, results: Sequence[Result]) -> None:
    """Draw a group of bars for each size and batch, and the floor if it is known."""
    names = list(dict.fromkeys(n for r in results for n in r["extra_info"]["opponents"]))
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    ticks, top = [], 0.0
    for result in results:
        facts, first = result["extra_info"], top
        for name in facts["opponents"]:
            _draw_bar(axis, top, facts, name, colours[name])
            top += 1
        ticks.append(((first + top - 1) / 2, _case(result)))
        if "floor_percent" in facts:
            floor = facts["floor_percent"] / 100
            axis.vlines(floor, first - 0.43, first + 0.43, color=FLOOR_COLOUR, lw=2.5)
        top += GAP
    axis.set_title("Time of a training step, fastunit's being 1", pad=24)  # over the legend
    handles: list[Any] = [Patch(color=colours[name], label=name) for name in names]
    if any("floor_percent" in result["extra_info"] for result in results):
        handles.append(Line2D([], [], color=FLOOR_COLOUR, lw=2, label="floor (roofline)"))
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "borderpad": 0}
    axis.legend(handles=handles, frameon=False, ncols=len(handles), **place)
    _finish(axis, ticks, top)


def _draw_ablation(axis: Axes, results: Sequence[Result]) -> None:
    """Draw a group of bars for each size and batch: all optimizations on, and each one off."""
    ticks, top = [], 0.0
    for result in results:
        facts = result["extra_info"]
        for index, name in enumerate(facts["opponents"]):
            _draw_bar(axis, top, facts, name, COLOURS[min(index, 1)])
            ticks.append((top, name if index else f"{_case(result)}: {name}"))
            top += 1
        top += GAP
    axis.set_title("Ablations: time of the step, with all optimizations 1")
    _finish(axis, ticks, top)


def _draw_bar(axis: Axes, place: float, facts: Mapping[str, Any], name: str, colour: str) -> None:
    """Draw one contender's time relative to the first's, or the reason why there is none."""
    found = facts.get(name)
    if not isinstance(found, Mapping):
        axis.annotate(f" {name}: {found}", (0, place), va="center", fontsize=9)
        return
    ratio = facts.get(f"{name}_ratio", 1.0)
    axis.barh(place, ratio, color=colour, height=0.85)
    times = f"{tables.number(found['median_ms'])} ms"
    label = f" {times}" if ratio == 1.0 else f" {ratio:.2f}   ({times})"
    axis.annotate(label, (ratio, place), va="center", fontsize=9)


def _case(result: Result) -> str:
    params = result["params"]
    return f"{params['size']}x{params['size']}, batch {params['batch']}"


def _finish(axis: Axes, ticks: Sequence[tuple[float, str]], rows: float) -> None:
    axis.axvline(1, color="black", lw=0.8, zorder=0)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.2)  # room for the last label
    axis.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(rows - GAP, -1)  # the first at the top
