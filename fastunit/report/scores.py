"""The scores of an evaluation as text and as an HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastunit.report import document, summary

SETS = {
    "translation": "translations",
    "floor": "floor: real training images",
    "ceiling": "ceiling: untranslated images",
}
PAIRED = {"l1": "L1", "psnr": "PSNR (dB)", "ssim": "SSIM", "features": "feature distance"}
_IMAGE_BYTES = 12_000
_SHOWN = 192  # pixels of an example's height on the page, at least
Scores = Mapping[str, Any]


class Example(NamedTuple):
    """An image of the page: the source's file name, its error, and the images in a row."""

    name: str
    error: float
    images: Sequence[np.ndarray]  # uint8 [H, W, 3]


class Names(NamedTuple):
    """What the distances are called: with Inception KID and FID, else with the network's name."""

    kernel: str
    frechet: str


def tables(scores: Scores, names: Names | None) -> list[tuple[str, list[list[str]]]]:
    """Return titled tables: distances of sets and pairs by direction, cycle errors, diversity."""
    found = []
    for way, label in summary.WAYS.items():
        rows = _set_rows(scores[way], names)
        if rows:
            found.append((f"{label}: distance from real images", rows))
        if "pairs" in scores[way]:
            rows = _pair_rows(scores[way]["pairs"])
            found.append((f"{label}: {scores[way]['pairs']['count']} held-out pairs", rows))
    cycles = [["", "cycle error (L1)"]]
    cycles += [[label, text(scores[way]["cycle_l1"])] for way, label in summary.WAYS.items()]
    found.append(("there and back", cycles))
    if "diversity" in scores["a2b"]:
        found.append(("two random styles of an image: distance", _style_rows(scores)))
    return found


def sentences(scores: Scores, names: Names | None) -> list[str]:
    """Say in words whether translations are nearer to the target than what needs no network."""
    said = []
    for way, label in summary.WAYS.items():
        kernel = scores[way].get("kernel", {})
        if names and {"translation", "ceiling"} <= kernel.keys():
            said.append(f"{label}: {_nearer(kernel, names.kernel)}")
    if all("pairs" in scores[way] for way in summary.WAYS):
        figures = {way: scores[way]["pairs"]["figures"] for way in summary.WAYS}
        said += summary.sentences(figures)  # which compare L1
        for way, label in summary.WAYS.items():
            said += [f"{label}: {line}" for line in _not_beaten(scores[way]["pairs"])]
    return said


def _not_beaten(pairs: Scores) -> Iterator[str]:
    """Yield a sentence for each measure but L1 by which a baseline is as good."""
    for name in PAIRED:
        if name == "l1" or name not in pairs["paired"]:
            continue
        sign = -1 if name in ("psnr", "ssim") else 1  # which are larger for nearer images
        errors = {kind: sign * pairs[kind][name].value for kind in summary.KINDS if kind in pairs}
        best = min(errors, key=errors.__getitem__)
        if best != "paired":
            yield (
                f"by {PAIRED[name]} the translation does NOT beat the {summary.KINDS[best]} "
                f"({text(pairs['paired'][name])} against {text(pairs[best][name])})"
            )


def lines(scores: Scores, names: Names | None) -> list[str]:
    """Return what is printed: aligned tables, then sentences."""
    found = []
    for title, rows in tables(scores, names):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        found += ["", title]
        for first, *cells in rows:
            aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
            found.append("  ".join(["  " + first.ljust(widths[0]), *aligned]).rstrip())
    return [*found, "", *sentences(scores, names)]


def page(
    title: str,
    scores: Scores,
    names: Names | None,
    examples: Mapping[str, Mapping[str, Sequence[Example]]],
    notes: Sequence[str] = (),
) -> str:
    """Return the page: tables, sentences, and each direction's best and worst images."""
    said = "".join(f"<p>{html.escape(line)}.</p>" for line in (*sentences(scores, names), *notes))
    parts = [document.section("In words", said)]
    parts += [document.section(head, document.table(rows)) for head, rows in tables(scores, names)]
    for way, label in summary.WAYS.items():
        for kind, found in examples.get(way, {}).items():
            rows = "".join(map(_example, found))
            parts.append(document.section(f"{label}: {kind} translations", rows))
    return document.document(title, parts)


def text(measured: Any) -> str:
    """Return a value with its 95 % interval."""
    value, margin = measured
    digits = 1 if abs(value) >= 10 else 4
    return f"{value:.{digits}f}" + ("" if margin is None else f" ± {margin:.{digits}f}")


def checkpoint_rows(found: Sequence[tuple[int, Scores]], names: Names | None) -> list[list[str]]:
    """Return a table with a row for each checkpoint."""
    head = ["iteration"]
    for label in summary.WAYS.values():
        head += [f"{label}: {names.kernel}"] if names else []
        head += [f"{label}: pairs' L1"] if "pairs" in found[0][1]["a2b"] else []
        head += [f"{label}: cycle L1"]
    rows = [head]
    for iteration, scores in found:
        row = [f"{iteration:,}"]
        for way in summary.WAYS:
            each = scores[way]
            row += [text(each["kernel"]["translation"])] if names else []
            row += [text(each["pairs"]["paired"]["l1"])] if "pairs" in each else []
            row += [text(each["cycle_l1"])]
        rows.append(row)
    return rows


def _style_rows(scores: Scores) -> list[list[str]]:
    names = list(scores["a2b"]["diversity"])
    rows = [["", *({"l1": "L1"}.get(name, name) for name in names)]]
    for way, label in summary.WAYS.items():
        rows.append([label, *(text(scores[way]["diversity"][name]) for name in names)])
    return rows


def _set_rows(scores: Scores, names: Names | None) -> list[list[str]]:
    if names is None or not scores.get("kernel"):
        return []
    rows = [["", names.kernel, names.frechet]]
    for kind, label in SETS.items():
        if kind in scores["kernel"]:
            rows.append([label, *(text(scores[key][kind]) for key in ("kernel", "frechet"))])
    return rows


def _pair_rows(pairs: Scores) -> list[list[str]]:
    measures = [name for name in PAIRED if name in pairs["paired"]]
    rows = [["", *(PAIRED[name] for name in measures)]]
    for kind, label in summary.KINDS.items():
        if kind in pairs:
            rows.append([label, *(text(pairs[kind][name]) for name in measures)])
    return rows


def _nearer(kernel: Scores, name: str) -> str:
    ours, ceiling = kernel["translation"], kernel["ceiling"]
    words = f"{name} {text(ours)} against {text(ceiling)}"
    apart = abs(ceiling[0] - ours[0])
    if apart <= ((ours[1] or 0) ** 2 + (ceiling[1] or 0) ** 2) ** 0.5:
        return f"translations cannot be told from untranslated images by their distance ({words})"
    if ours[0] > ceiling[0]:
        return f"translations are NOT nearer to real images than untranslated ones ({words})"
    return f"translations are nearer to real images than untranslated ones ({words})"


def _example(example: Example) -> str:
    rows = [Image.fromarray(pixels) for pixels in example.images]
    scale = max(1, -(-_SHOWN // max(row.height for row in rows)))
    width = sum(row.width for row in rows) + 4 * (len(rows) - 1)
    strip = Image.new("RGB", (width, max(row.height for row in rows)), "white")
    x = 0
    for row in rows:
        strip.paste(row, (x, 0))
        x += row.width + 4
    strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
    what = "source, translation" + (", true image" if len(rows) > 2 else "")
    caption = f"{example.name}: error {example.error:.3f} ({what})"
    image = document.img(strip, caption, _IMAGE_BYTES)
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{image}</figure>"


def find_name(file: Path, others: Sequence[Path]) -> str:
    """Return a file's name, with its folder where another file has the same name."""
    same = sum(other.name == file.name for other in others)
    return file.name if same < 2 else f"{file.parent.name}/{file.name}"
