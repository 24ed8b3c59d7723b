"""The least time of a step: each kernel's, and the printed sum."""

from __future__ import annotations

import numpy as np
import pytest

from bench.model import costs, roofline
from bench.model.peaks import Ceilings
from fastunit import config
from tests.support.benchmarks import H100, cells


def test_floor_of_the_release_is_near_the_one_reckoned_before():
    """25.5 ms at batch 8; 4.0 at 1, of 1.8 GB more than here, presumably partial sums of wgrad."""
    one, eight = (
        roofline.floor_ms(config.from_dict({"batch_size": size}), H100) for size in (1, 8)
    )
    assert eight == pytest.approx(25.5, rel=0.10)
    assert one + 1e3 * H100.seconds(0, 1.8e9) == pytest.approx(4.0, rel=0.10)


def test_each_kernel_takes_the_longer_of_its_two_times():
    ceilings = Ceilings(tflop_per_s=2, gb_per_s=10)
    kernels = [
        costs.Kernel("x", "products", 0, 0, issued=4 * 10**9, bytes=10**6),
        costs.Kernel("x", "bytes", 0, 0, issued=10**6, bytes=30 * 10**6),
    ]
    assert roofline.total(kernels, ceilings).floor_ms == pytest.approx(2 + 3)


def test_roofline_prints_every_part_and_their_sum(capsys):
    size = ["crop_image_height=256", "crop_image_width=256", "new_size=256"]
    argv = [word for key in size for word in ("--set", key)]
    assert roofline.main(["--config", "photos", "--tflops", "400", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "256x256, batch 4: 400 TFLOP/s, 3000 GB/s"
    rows = {row[0]: row for row in cells(lines[4:])}
    whole = [float(value) for value in rows.pop("**step**")[1:]]
    sums = np.sum([[float(value) for value in row[1:]] for row in rows.values()], axis=0)
    assert np.allclose(sums, whole, atol=0.05 * len(rows))
