"""What several tests of the benchmarks read, and train."""

from __future__ import annotations

from collections.abc import Iterable

from bench.model.peaks import Ceilings

H100 = Ceilings(800, 3000)  # TFLOP/s and GB/s
SMALL = {
    "gen": {"dim": 4, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
    "crop_image_height": 16,
    "crop_image_width": 24,
    "batch_size": 3,
}


def cells(lines: Iterable[str]) -> list[list[str]]:
    """Return the cells of the lines of a Markdown table, header and rule included."""
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
