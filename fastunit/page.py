"""The run's `index.html`: grids over time, loss curves, result and configuration in one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastunit import files
from fastunit.report import curves_svg, read_metrics

MOST_GRIDS = 16  # embedded, so that the page stays a few megabytes

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2230; --paper: #fbfbfd; --line: #d9dce5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --paper: #15171d; --line: #343846; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
figure { margin: 0 0 1rem; } figure img, .curves svg { width: 100%; height: auto; }
figure img, .curves { border: 1px solid var(--line); border-radius: 6px; background: #fff; }
figure img { image-rendering: pixelated; }
figcaption { font-size: .9rem; opacity: .8; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; text-align: right;
        border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; }
input[type=range] { width: 100%; } pre { overflow: auto; font-size: .85rem; }
"""

# Without scripts every grid is shown; with them, one at a time under a slider.
_SCRIPT = """
const grids = [...document.querySelectorAll("figure")], slider = document.querySelector("input");
const show = () => grids.forEach((g, i) => { g.hidden = i != slider.value; });
if (grids.length > 1) { slider.hidden = false; slider.oninput = show; show(); }
"""


def write_page(
    run_dir: Path, title: str, config_text: str, result: Mapping[str, Any] | None
) -> None:
    """Write `run_dir`/index.html, self-contained and readable from the disk, atomically.

    Args:
        run_dir: holds metrics.jsonl and samples/NNNNNNNN.png; up to `MOST_GRIDS` of these,
            spread over time, are embedded.
        title: the heading.
        config_text: the resolved configuration, shown folded.
        result: what result.json holds, None while the run goes on.
    """
    grids = _spread(sorted((run_dir / "samples").glob("[0-9]*.png")))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _result_table(result),
        "<h2>Samples</h2>",
        f'<input type="range" min="0" max="{len(grids) - 1}" value="{len(grids) - 1}" hidden '
        'aria-label="iteration">',
        *map(_figure, grids),
        "<h2>Losses</h2>",
        f'<div class="curves">{curves_svg(read_metrics(run_dir))}</div>',
        "<h2>Configuration</h2>",
        f"<details><summary>resolved configuration</summary><pre>{html.escape(config_text)}</pre>"
        "</details>",
    ]
    files.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<script>{_SCRIPT}</script></body></html>\n",
        run_dir / "index.html",
    )


def _spread(paths: list[Path]) -> list[Path]:
    """Return at most MOST_GRIDS paths at even distances, the first and last among them."""
    if len(paths) <= MOST_GRIDS:
        return paths
    last = len(paths) - 1
    return [paths[round(i * last / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)]


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    iteration = int(path.stem)
    return (
        f'<figure><img alt="samples at iteration {iteration}" '
        f'src="data:image/png;base64,{data}"><figcaption>iteration {iteration:,}</figcaption>'
        "</figure>"
    )


def _result_table(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "<p>Training goes on; reload to see more.</p>"
    words = f"Iteration {result['iteration']:,}, {result['images_per_s']:.1f} images/s, "
    words += f"{result['seconds']:.0f} s in all."
    if "a2b" not in result:
        return f"<p>{words} The test sets are not pairs, so there is no paired error.</p>"
    rows = "".join(
        f"<tr><td>{label}</td><td>{result[key]['paired_l1']:.4f}</td>"
        f"<td>{result[key]['identity_l1']:.4f}</td></tr>"
        for key, label in (("a2b", "a to b"), ("b2a", "b to a"))
    )
    return (
        f"<p>{words} Mean absolute difference from the true image over {result['pairs']} held-out "
        "pairs, images in [-1, 1]:</p><table><tr><th>direction</th><th>translated</th>"
        f"<th>left unchanged</th></tr>{rows}</table>"
    )
