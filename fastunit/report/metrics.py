"""Metrics of a run, written to TensorBoard and as JSON lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fastunit.common import files
from fastunit.report.groups import tag


class Metrics:
    """Writes named numbers to `metrics.jsonl` and, grouped, to TensorBoard, both in `run_dir`.

    A JSONL record has "iteration", "time" (seconds since this object was created) and the numbers;
    non-finite ones are written as the strings "nan", "inf" and "-inf", since JSON has no such
    numbers. Records after iteration `resume_from` (None: 0) from an earlier run are dropped.
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
            self._board.add_scalar(tag(name), value, iteration)

    def image(self, tag: str, path: Path, iteration: int) -> None:
        """Write an image file to TensorBoard."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._board.add_image(tag, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, up to an incomplete line left by a crash."""
    records = []
    with open(run_dir / "metrics.jsonl", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records
