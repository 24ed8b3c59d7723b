"""What people look at: sample grids, metrics for TensorBoard and JSONL, and the run's page."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastunit import files

GAP = 4  # pixels between pictures
LABEL = 15  # height of the line that names a row


def save_grid(rows: Mapping[str, Tensor], path: Path) -> None:
    """Write a PNG with one labelled row of pictures per entry, atomically.

    Each entry is [N, C, H, W] in [-1, 1], C 1 or 3, on any device; sizes may differ between
    rows. Small pictures are enlarged by a whole factor to a height of at least 64 pixels.
    """
    strips = [(label, _strip(images)) for label, images in rows.items()]
    width = max(strip.width for _, strip in strips) + 2 * GAP
    height = sum(strip.height + LABEL + GAP for _, strip in strips) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(12), GAP
    for label, strip in strips:
        pen.text((GAP, y), label, fill="black", font=font)
        sheet.paste(strip, (GAP, y + LABEL))
        y += strip.height + LABEL + GAP
    with files.atomic(path) as temporary:
        sheet.save(temporary)


def _strip(images: Tensor) -> Image.Image:
    """Return images side by side as one picture."""
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    count, height, width, _ = pixels.shape
    scale = max(1, math.ceil(64 / height))
    strip = Image.new("RGB", (count * (width * scale + GAP) - GAP, height * scale), "white")
    for index, picture in enumerate(pixels):
        large = Image.fromarray(np.repeat(np.repeat(picture, scale, 0), scale, 1))
        strip.paste(large, (index * (width * scale + GAP), 0))
    return strip


class Metrics:
    """Writes named numbers to `metrics.jsonl` and to TensorBoard, both in `run_dir`.

    A JSONL line is an object with "iteration", "time" (seconds since this object was made) and
    the numbers; one that is not finite stands as the text "nan", "inf" or "-inf", since JSON has
    no such numbers. `resume_from` drops what an earlier run wrote after that iteration.
    """

    def __init__(self, run_dir: Path, resume_from: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        if resume_from is not None and path.exists():
            kept = [r for r in read_metrics(run_dir) if r["iteration"] <= resume_from]
            files.write_text("".join(json.dumps(record) + "\n" for record in kept), path)
        self._start = time.perf_counter()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        purge = None if resume_from is None else resume_from + 1
        self._board = SummaryWriter(os.fspath(run_dir / "tensorboard"), purge_step=purge)

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl; a line torn by a crash ends them."""
    records = []
    with open(run_dir / "metrics.jsonl", encoding="utf-8") as lines:
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def curves_svg(records: list[dict[str, Any]]) -> str:
    """Return the loss curves as an inline SVG: raw values faint, a running mean over them."""
    from matplotlib.figure import Figure

    groups = {
        "discriminators": ("discriminator_a", "discriminator_b"),
        "adversarial": ("adversarial_a", "adversarial_b"),
        "reconstruction (L1)": ("reconstruction_a", "reconstruction_b"),
        "cycle (L1)": ("cycle_a", "cycle_b"),
        "KL of the codes": ("kl_a", "kl_b", "cycle_kl_a", "cycle_kl_b"),
        "totals": ("generator_total", "discriminator_total"),
    }
    if any("perceptual_a" in record for record in records):
        groups["perceptual"] = ("perceptual_a", "perceptual_b")
    figure = Figure(figsize=(10, 2.6 * math.ceil(len(groups) / 3)), layout="constrained")
    for index, (title, names) in enumerate(groups.items()):
        axes = figure.add_subplot(math.ceil(len(groups) / 3), 3, index + 1)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        for name in names:
            _draw_curve(axes, records, name)
        if axes.lines:
            axes.legend(fontsize=7)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _draw_curve(axes: Any, records: list[dict[str, Any]], name: str) -> None:
    points = [(r["iteration"], r[name]) for r in records if isinstance(r.get(name), float)]
    if not points:
        return
    points = points[:: max(1, len(points) // 1000)]  # more cannot be seen, and would fill the page
    x, y = np.array(points).T
    smooth, decay = np.copy(y), 0.9
    for i in range(1, len(y)):
        smooth[i] = decay * smooth[i - 1] + (1 - decay) * y[i]
    (line,) = axes.plot(x, smooth, label=name, linewidth=1.4)
    axes.plot(x, y, color=line.get_color(), alpha=0.25, linewidth=0.8)
