"""What people look at: sample grids, metrics for TensorBoard and JSONL, and the run's page."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fastunit import files

GAP = 4  # pixels between pictures
LABEL = 20  # height of the line that names a row
SMALLEST = 64  # smaller pictures are enlarged to at least this height
SMOOTH = 40  # a running mean spans a 40th of a curve to either side
MOST_POINTS = 600  # of a curve: more cannot be seen, and would fill the page

_GROUPS = {
    "discriminators": ("discriminator_a", "discriminator_b"),
    "adversarial": ("adversarial_a", "adversarial_b"),
    "reconstruction (L1)": ("reconstruction_a", "reconstruction_b"),
    "cycle (L1)": ("cycle_a", "cycle_b"),
    "identity (L1)": ("identity_a", "identity_b"),
    "KL of the codes": ("kl_a", "kl_b", "cycle_kl_a", "cycle_kl_b"),
    "totals": ("generator_total", "discriminator_total"),
    "perceptual": ("perceptual_a", "perceptual_b"),
}
_INK = "#123456"  # stands for the page's text colour, which follows its light or dark theme


def save_grid(rows: Mapping[str, Tensor], path: Path) -> None:
    """Write a PNG with one labelled row of pictures per entry, atomically.

    Each entry is [N, C, H, W] in [-1, 1], C 1 or 3, on any device; sizes may differ between
    rows. Small pictures are enlarged by a whole factor to a height of `SMALLEST` or more.
    """
    draw_grid({label: to_pixels(images).cpu().numpy() for label, images in rows.items()}, path)


def to_pixels(images: Tensor) -> Tensor:
    """Return [N, C, H, W] in [-1, 1], C 1 or 3, as uint8 [N, H, W, 3] on the same device."""
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def draw_grid(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """Do what `save_grid` does, for rows of uint8 [N, H, W, 3]; runs no PyTorch operation."""
    strips = [(label, _strip(pixels)) for label, pixels in rows.items()]
    width = max(strip.width for _, strip in strips) + 2 * GAP
    height = sum(strip.height + LABEL + GAP for _, strip in strips) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(14), GAP
    for label, strip in strips:
        pen.text((GAP, y), label, fill="black", font=font)
        sheet.paste(strip, (GAP, y + LABEL))
        y += strip.height + LABEL + GAP
    with files.atomic(path) as temporary:
        sheet.save(temporary)


def _strip(pixels: np.ndarray) -> Image.Image:
    """Return images side by side as one picture."""
    count, height, width, _ = pixels.shape
    scale = max(1, math.ceil(SMALLEST / height))
    strip = Image.new("RGB", (count * (width * scale + GAP) - GAP, height * scale), "white")
    for index, picture in enumerate(pixels):
        large = Image.fromarray(np.repeat(np.repeat(picture, scale, 0), scale, 1))
        strip.paste(large, (index * (width * scale + GAP), 0))
    return strip


class Metrics:
    """Writes named numbers to `metrics.jsonl` and to TensorBoard, both in `run_dir`.

    A JSONL line is an object with "iteration", "time" (seconds since this object was made) and
    the numbers; one that is not finite stands as the text "nan", "inf" or "-inf", since JSON has
    no such numbers. What an earlier run wrote after iteration `resume_from` (None: 0)
    is dropped.
    """

    def __init__(self, run_dir: Path, resume_from: int | None = None) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path, last = run_dir / "metrics.jsonl", resume_from or 0
        if path.exists():
            kept = [r for r in read_metrics(run_dir) if r["iteration"] <= last]
            files.write_text("".join(json.dumps(record) + "\n" for record in kept), path)
        self._start = time.perf_counter()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = SummaryWriter(os.fspath(run_dir / "tensorboard"), purge_step=last + 1)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one record."""
        stamp = {"iteration": iteration, "time": round(time.perf_counter() - self._start, 3)}
        numbers = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._file.write(json.dumps(stamp | numbers) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    def image(self, tag: str, path: Path, iteration: int) -> None:
        """Show a picture file in TensorBoard."""
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._board.add_image(tag, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Write what is buffered and close both files."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl; a line torn by a crash ends them."""
    records = []
    with open(run_dir / "metrics.jsonl", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def curves_svg(records: list[dict[str, Any]]) -> str:
    """Return the loss curves as an inline SVG: raw values faint, a running mean over them.

    Losses that were not recorded have no panel; values that are not finite are left out.
    """

    curves = {
        title: {name: points for name in names if len(points := _points(records, name))}
        for title, names in _GROUPS.items()
    }
    curves = {title: lines for title, lines in curves.items() if lines}
    rows = max(1, math.ceil(len(curves) / 3))
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "text.color": _INK}):
        figure = Figure(figsize=(11, 2.7 * rows), layout="constrained")
        for index, (title, lines) in enumerate(curves.items()):
            _draw_panel(figure.add_subplot(rows, 3, index + 1), title, lines)
        figure.savefig(buffer, format="svg", transparent=True)
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
        # "same" pads with zeros; dividing by how much was inside keeps the ends in place.
        mean = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
        shown = slice(None, None, math.ceil(len(y) / MOST_POINTS))
        (line,) = axes.plot(x[shown], mean[shown], label=name, linewidth=1.6)
        axes.plot(x[shown], y[shown], color=line.get_color(), alpha=0.3, linewidth=0.8)
    axes.legend(fontsize=8, frameon=False)
