"""The run's `index.html`: status, result, images, loss curves and settings in one file.

It is at most 3 MB whatever the length of the run, and shows all images without JavaScript.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from fastunit.common import files
from fastunit.common.durations import duration
from fastunit.common.spread import spread
from fastunit.report import document, summary
from fastunit.report.curves import curves_svg
from fastunit.report.grid import cells
from fastunit.report.metrics import read_metrics

FOLDER = "samples"  # of a run: sample grids
MOST_GRIDS, MOST_WIDTH = 16, 1100  # embedded grids, and their width in pixels
GRID_BYTES, PAIR_BYTES = 1_300_000, 300_000  # of all grids and of all pairs, as WebP
PAIRS = 4  # of each direction
MOST_RECORDS = 20_000  # that curves are drawn from: some 20 MB of memory
DIRECTIONS = (("input a", "a to b"), ("input b", "b to a"))  # rows of a sample grid
_GRID = re.compile(r"\d{8}\.png", re.ASCII)

# Without JavaScript all grids are shown; with it, one at a time, chosen by a slider.
_SCRIPT = """
const grids = [...document.querySelectorAll("figure.grid")];
const slider = document.querySelector("#time");
const show = () => grids.forEach((g, i) => { g.hidden = i != slider.value; });
if (grids.length > 1) { slider.hidden = false; slider.oninput = show; show(); }
"""


def write_page(
    run_dir: Path,
    title: str,
    config_text: str,
    result: Mapping[str, Any] | None,
    *,
    iteration: int = 0,
    total: int = 0,
) -> None:
    """Write `run_dir`/index.html, self-contained, atomically.

    Args:
        run_dir: holds metrics.jsonl, samples/NNNNNNNN.png, of which up to `MOST_GRIDS`, spread over
            time, are embedded, and environment.json, if any.
        title: the heading.
        config_text: the resolved configuration, shown collapsed.
        result: the content of result.json, None during training.
        iteration: the last iteration.
        total: the iteration at which training ends.
    """
    kept = grids(run_dir)
    shown, records = spread(kept, MOST_GRIDS), read_metrics(run_dir, MOST_RECORDS)
    config = f"<details><summary>resolved</summary><pre>{html.escape(config_text)}</pre></details>"
    parts = [
        document.section("Status", _status(records, result, iteration, total)),
        document.section("Result", _result_table(result)),
        *_comparisons(kept[-1] if kept else None),
        document.section("Samples", _slider(len(shown)) + "".join(map(_figure, shown))),
        document.section("Losses by iteration", curves_svg(records)),
        *_environment(run_dir / "environment.json"),
        document.section("Configuration", config),
    ]
    page = document.document(title, parts, _SCRIPT + document.PAIR_SCRIPT)
    files.write_text(page, run_dir / "index.html")


def time_left(records: list[dict[str, Any]], iteration: int, total: int) -> float | None:
    """Return the seconds until the last iteration, by the pace of the latest records; or None.

    "time" in a record counts from the start of its process, so only the latest's count.
    """
    recent = [record for record in records[-50:] if isinstance(record.get("time"), (int, float))]
    for index in range(len(recent) - 1, 0, -1):
        if recent[index]["time"] < recent[index - 1]["time"]:  # the run was resumed here
            recent = recent[index:]
            break
    if len(recent) < 2 or recent[-1]["iteration"] <= recent[0]["iteration"]:
        return None
    seconds = recent[-1]["time"] - recent[0]["time"]
    return seconds / (recent[-1]["iteration"] - recent[0]["iteration"]) * (total - iteration)


def _status(
    records: list[dict[str, Any]], result: Mapping[str, Any] | None, iteration: int, total: int
) -> str:
    now = time.strftime("%Y-%m-%d %H:%M")
    if result is not None:
        return f"<p>Finished at iteration {result['iteration']:,}; written {now}.</p>"
    if not total:
        return "<p>Training is running; reload the page to update it.</p>"
    left = time_left(records, iteration, total)
    rest = "" if left is None else f", about {duration(left)} left"
    return (
        f'<progress max="{total}" value="{iteration}"></progress>'
        f"<p>Training: iteration {iteration:,} of {total:,} ({iteration / total:.0%}){rest}. "
        f"Written {now} with the latest sample grid; reload the page to update it.</p>"
    )


def grids(run_dir: Path) -> list[Path]:
    """Return the kept sample grids of a run, oldest first; other files there are none."""
    return sorted(path for path in (run_dir / FOLDER).glob("*.png") if _GRID.fullmatch(path.name))


def _comparisons(grid: Path | None) -> Iterator[str]:
    """Yield a section of inputs and their translations, from the newest grid."""
    if grid is None:
        return
    rows = cells(grid)
    pairs = [
        (rows[source][index], rows[label][index], f"{label}, {index + 1}")
        for source, label in DIRECTIONS
        for index in range(min(PAIRS, len(rows.get(source, ())), len(rows.get(label, ()))))
    ]
    if pairs:
        budget = PAIR_BYTES // len(pairs)
        shown = "".join(document.pair(*each, budget) for each in pairs)
        title = f"Before and after, iteration {int(grid.stem):,}"
        yield document.section(title, f'<div class="pairs">{shown}</div>')


def _environment(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    versions = (f"{name} {value}" for name, value in found.get("versions", {}).items() if value)
    rows = [
        ("device", str(found.get("device"))),
        ("threads", str(found.get("threads"))),
        ("versions", ", ".join(versions)),
        ("commit", str(found.get("commit") or "not a checkout")),
        ("command", " ".join(map(str, found.get("command", ())))),
        ("seed", str(found.get("seed"))),
    ]
    yield document.section("Environment", document.facts(rows))


def _slider(count: int) -> str:
    # autocomplete=off: some browsers restore a slider on reload, and the newest grid is wanted.
    return (
        f'<input type="range" id="time" min="0" max="{max(count - 1, 0)}" '
        f'value="{max(count - 1, 0)}" hidden autocomplete="off" aria-label="samples over time">'
    )


def _figure(path: Path) -> str:
    iteration = int(path.stem)
    image = _grid_image(path, path.stat().st_mtime_ns)
    return f'<figure class="grid"><figcaption>iteration {iteration:,}</figcaption>{image}</figure>'


@lru_cache(maxsize=4 * MOST_GRIDS)  # a run's page is written often, with few new grids each time
def _grid_image(path: Path, modified: int) -> str:
    with Image.open(path) as grid:
        if grid.width > MOST_WIDTH:
            size = (MOST_WIDTH, round(grid.height * MOST_WIDTH / grid.width))
            grid = grid.resize(size, Image.Resampling.LANCZOS)
        alt = f"samples at iteration {int(path.stem)}"
        return document.img(grid, alt, GRID_BYTES // MOST_GRIDS)


def _result_table(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "<p>The held-out error is measured at the end of training.</p>"
    words = f"Iteration {result['iteration']:,}, {result['images_per_s']:.1f} images/s, "
    words += f"{result['seconds']:.0f} s in total."
    if "a2b" not in result:
        return f"<p>{words} The test sets are not pairs, so there is no held-out error.</p>"
    said = "".join(f"<p>{html.escape(line)}.</p>" for line in summary.sentences(result))
    legend = "; ".join(map(html.escape, summary.LEGEND))
    return (
        f"<p>{words} {result['pairs']} held-out pairs:</p>"
        f"{document.table(summary.table(result))}{said}<p>{legend}.</p>"
    )
