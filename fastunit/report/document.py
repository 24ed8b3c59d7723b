"""Self-contained HTML pages: style, sections, tables, and images within a budget of bytes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

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
          padding: 1.1rem 1.3rem; margin: 1.3rem 0; overflow-x: auto; }
figure { margin: 0 0 1rem; } figure:last-child { margin: 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; font-variant-numeric: tabular-nums; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 6px; }
svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0 0 .8rem; }
td, th { padding: .35rem 1.6rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; } tr:last-child td { border: 0; }
.facts td { text-align: left; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); white-space: nowrap; overflow-wrap: normal; }
input[type=range] { width: 100%; margin: 0 0 .6rem; accent-color: var(--accent); }
progress { width: 100%; height: .7rem; accent-color: var(--accent); margin: 0 0 .4rem; }
summary { cursor: pointer; } pre { overflow: auto; font-size: .85rem; margin: .8rem 0 0; }
.pairs { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.pair { display: inline-grid; grid-template-columns: auto auto; gap: .3rem; margin: 0; }
.pair img { width: 15rem; max-width: 40vw; border-radius: 6px; margin: 0; }
.pair figcaption, .pair input { grid-column: 1 / -1; margin: 0; }
.pair.over { grid-template-columns: auto; }
.pair.over img { grid-column: 1; grid-row: 2; }
"""


def document(title: str, parts: Iterable[str], script: str = "") -> str:
    """Return a complete page: a heading, its parts, and a script at the end."""
    head = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{head}</title><style>{_STYLE}</style></head><body>\n<h1>{head}</h1>\n"
        + "\n".join(parts)
        + (f"\n<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Return a titled part of a page."""
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, the first row its heading."""
    head, *body = rows
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    )
    return f"<table><tr>{cells}</tr>{lines}</table>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    lines = (f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f'<table class="facts">{"".join(lines)}</table>'


def img(image: Image.Image, alt: str, budget: int) -> str:
    """Return an img element that holds an image as WebP of at most `budget` bytes."""
    data = base64.b64encode(webp(image, budget)).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/webp;base64,{data}">'


def pair(before: Image.Image, after: Image.Image, caption: str, budget: int) -> str:
    """Return two images that `PAIR_SCRIPT` lays over each other; without it side by side."""
    images = (
        img(image, f"{caption}, {name}", budget // 2)
        for image, name in ((before, "before"), (after, "after"))
    )
    caption = html.escape(caption)
    return f'<figure class="pair"><figcaption>{caption}</figcaption>{"".join(images)}</figure>'


# A slider under each pair uncovers the second image from the left.
PAIR_SCRIPT = """
for (const pair of document.querySelectorAll(".pair")) {
  const after = pair.querySelectorAll("img")[1], slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50, autocomplete: "off" });
  slider.setAttribute("aria-label", "before and after");
  const show = () => { after.style.clipPath = `inset(0 0 0 ${slider.value}%)`; };
  slider.oninput = show; pair.append(slider); pair.classList.add("over"); show();
}
"""


def webp(image: Image.Image, budget: int) -> bytes:
    """Return an image as WebP of at most `budget` bytes: first at lower quality, then smaller."""
    image = image.convert("RGB")
    while True:
        for quality in (82, 60, 40):
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=2)
            if buffer.tell() <= budget or max(image.size) <= 16:
                return buffer.getvalue()
        size = (max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))
        image = image.resize(size, Image.Resampling.LANCZOS)
