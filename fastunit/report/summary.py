"""The held-out evaluation as text: the table and sentences for the console and the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAYS = {"a2b": "a to b", "b2a": "b to a"}
KINDS = {
    "paired": "translation",
    "identity": "unchanged input",
    "constant": "constant image",
    "statistics": "position statistics",
}
LEGEND = (
    "error: mean absolute difference from the true image, values in [-1, 1]",
    "retrieval: share of images nearer to their own true image than to any other",
    "constant image: the mean of the target's training images, whatever the input",
    "position statistics: the input rescaled to the target's mean and standard deviation at each "
    "pixel position",
)

_FIGURES = ("error", "retrieval")

Result = Mapping[str, Any]


def table(result: Result) -> list[list[str]]:
    """Return a header and rows of `evaluate.measure`'s result; "-" for missing values."""
    rows = [["", *(f"{name}: {figure}" for name in WAYS.values() for figure in _FIGURES)]]
    for kind, label in KINDS.items():
        found = [figures(result[way], kind) for way in WAYS]
        rows.append([label, *(cell for pair in found for cell in _cells(*pair))])
    chances = [_cells(None, result[way].get("chance")) for way in WAYS]
    return [*rows, ["chance", *(cell for pair in chances for cell in pair)]]


def figures(found: Result, kind: str) -> tuple[float | None, float | None]:
    """Return one direction's error and retrieval of a kind of image; None if missing."""
    name = "retrieval" if kind == "paired" else f"{kind}_retrieval"
    return found.get(f"{kind}_l1"), found.get(name)


def lines(result: Result) -> list[str]:
    """Return the lines printed after training: legend, aligned table, sentences."""
    rows = table(result)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [f"held-out pairs: {result['pairs']}", *LEGEND]
    for label, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        text.append("  ".join([label.ljust(widths[0]), *aligned]))
    return [*text, *sentences(result)]


def sentences(result: Result) -> list[str]:
    """Say for each direction whether the translation beats the baselines, and by how much.

    A tie with the best baseline does not count as better. Missing figures are named with the
    reason.
    """
    text = []
    for way, label in WAYS.items():
        found = result[way]
        text.append(f"{label}: {_comparison(found)}")
        if "retrieval" in found and not found["retrieval"] > found["chance"]:
            text.append(
                f"{label}: retrieval is not above chance: translations do not match their scenes"
            )
        reasons = found.get("left_out", {})
        for reason in dict.fromkeys(reasons.values()):
            names = ", ".join(name for name in reasons if reasons[name] == reason)
            text.append(f"{label}: without {names}: {reason}")
    return text


def _comparison(found: Result) -> str:
    known = ((kind, figures(found, kind)[0]) for kind in KINDS)
    errors = {kind: error for kind, error in known if error is not None}
    ours = errors.pop("paired")
    best = min(errors, key=errors.__getitem__)
    if ours < errors[best]:
        share = 1 - ours / errors[best]
        return f"the translation's error is {share:.0%} below that of the {KINDS[best]}"
    return (
        f"the translation does NOT beat the {KINDS[best]}, which needs no network "
        f"({ours:.4f} against {errors[best]:.4f})"
    )


def _cells(error: float | None, retrieval: float | None) -> tuple[str, str]:
    return (
        "-" if error is None else f"{error:.4f}",
        "-" if retrieval is None else f"{retrieval:.3f}",
    )
