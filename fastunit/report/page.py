"""The run's `index.html`: grids over time, loss curves, result and configuration in one file."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fastunit.common import files
from fastunit.report import summary
from fastunit.report.curves import curves_svg
from fastunit.report.metrics import read_metrics

FOLDER = "samples"  # of a run: sample grids
_GRID = re.compile(r"\d{8}\.png", re.ASCII)
MOST_GRIDS, MOST_WIDTH = 16, 1100  # embedded grids, and their width in pixels: 10 MB at most

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2230; --soft: #5d6579; --paper: #f6f7fa;
        --card: #fff; --line: #e0e3ec; --accent: #3b6fd4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ef; --soft: #9aa2b5; --paper: #14161c;
        --card: #1d2028; --line: #313643; --accent: #7aa5ff; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 70rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
p { margin: 0 0 .8rem; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
          padding: 1.1rem 1.3rem; margin: 1.3rem 0; }
figure { margin: 0 0 1rem; } figure:last-child { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; font-variant-numeric: tabular-nums; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .35rem 1.6rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; } tr:last-child td { border: 0; }
input[type=range] { width: 100%; margin: 0 0 .6rem; accent-color: var(--accent); }
summary { cursor: pointer; } pre { overflow: auto; font-size: .85rem; margin: .8rem 0 0; }
"""

# Without JavaScript all grids are shown; with it, one at a time, chosen by a slider.
_SCRIPT = """
const grids = [...document.querySelectorAll("figure")], slider = document.querySelector("input");
const show = () => grids.forEach((g, i) => { g.hidden = i != slider.value; });
if (grids.length > 1) { slider.hidden = false; slider.oninput = show; show(); }
"""


def write_page(
    run_dir: Path, title: str, config_text: str, result: Mapping[str, Any] | None
) -> None:
    """Write `run_dir`/index.html, self-contained, atomically.

    Args:
        run_dir: holds metrics.jsonl and samples/NNNNNNNN.png; up to `MOST_GRIDS` grids, spread
            over time, are embedded.
        title: the heading.
        config_text: the resolved configuration, shown collapsed.
        result: the content of result.json, None during training.
    """
    shown = _spread(grids(run_dir))
    config = f"<details><summary>resolved</summary><pre>{html.escape(config_text)}</pre></details>"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _section("Result", _result_table(result)),
        _section("Samples", _slider(len(shown)) + "".join(map(_figure, shown))),
        _section("Losses by iteration", curves_svg(read_metrics(run_dir))),
        _section("Configuration", config),
    ]
    files.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<script>{_SCRIPT}</script></body></html>\n",
        run_dir / "index.html",
    )


def grids(run_dir: Path) -> list[Path]:
    """Return the kept sample grids of a run, oldest first; other files there are none."""
    return sorted(path for path in (run_dir / FOLDER).glob("*.png") if _GRID.fullmatch(path.name))


def _spread(paths: list[Path]) -> list[Path]:
    """Return at most MOST_GRIDS evenly spaced paths, including the first and last."""
    if len(paths) <= MOST_GRIDS:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)]


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>"


def _slider(count: int) -> str:
    # autocomplete=off: some browsers restore a slider on reload, and the newest grid is wanted.
    return (
        f'<input type="range" min="0" max="{max(count - 1, 0)}" value="{max(count - 1, 0)}" '
        'hidden autocomplete="off" aria-label="samples over time">'
    )


def _figure(path: Path) -> str:
    data = base64.b64encode(_small(path)).decode()
    iteration = int(path.stem)
    return (
        f"<figure><figcaption>iteration {iteration:,}</figcaption>"
        f'<img alt="samples at iteration {iteration}" src="data:image/png;base64,{data}"></figure>'
    )


def _small(path: Path) -> bytes:
    """Return a grid's PNG data, downscaled to MOST_WIDTH if it is wider."""
    with Image.open(path) as image:
        if image.width <= MOST_WIDTH:
            return path.read_bytes()
        size = (MOST_WIDTH, round(image.height * MOST_WIDTH / image.width))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _result_table(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "<p>Training is running; reload the page to update it.</p>"
    words = f"Iteration {result['iteration']:,}, {result['images_per_s']:.1f} images/s, "
    words += f"{result['seconds']:.0f} s in total."
    if "a2b" not in result:
        return f"<p>{words} The test sets are not pairs, so there is no held-out error.</p>"
    (_, *heading), *rows = summary.table(result)
    head = "".join(f"<th>{name}</th>" for name in ("", *heading))
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    said = "".join(f"<p>{html.escape(line)}.</p>" for line in summary.sentences(result))
    legend = "; ".join(map(html.escape, summary.LEGEND))
    return (
        f"<p>{words} {result['pairs']} held-out pairs:</p>"
        f"<table><tr>{head}</tr>{body}</table>{said}<p>{legend}.</p>"
    )
