"""The scripts of this folder with fewer rounds; docs/reliability.md has the figures of more."""

from __future__ import annotations

import pytest

from tests.hostile import checkpoints, images, kills, soak


@pytest.mark.slow
def test_a_thousand_hostile_images():
    pytest.importorskip("nvidia.dali", reason="the files are decoded with NVIDIA DALI")
    counts, wrong, _ = images.run(1000, seed=2)
    assert wrong == [] and counts["accepted"] > 200 and counts["refused"] > 400


@pytest.mark.slow
def test_twenty_kills():
    pytest.importorskip("nvidia.dali", reason="training reads images with NVIDIA DALI")
    count, wrong = kills.run(20, seed=3, iterations=30)
    assert wrong == [] and count >= 20


def test_flipped_bits_of_checkpoints():
    counts, unnoticed = checkpoints.run(300)
    assert unnoticed == [] and len(counts) >= 6


def test_the_soak_measures_growth():
    def samples(leak: float, files: int):
        return [
            soak.Sample(i, 500 + leak * i / 1000, 400.0, 15 + (files if i > 9000 else 0), 20)
            for i in range(0, 10_000, 50)
        ]

    assert soak.judge(samples(0.5, 0)).grown == []
    assert soak.judge(samples(2.0, 1)).grown == ["resident", "files"]
    assert soak.judge(samples(2.0, 0)).resident == pytest.approx(2.0)
