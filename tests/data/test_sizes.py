"""The size of images by a sample of headers, which may be hostile."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from fastunit.data import sizes

BOMB = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + b"\xff" * 13  # claims 16384x16384


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_the_shorter_side_is_the_median(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{side}.{suffix}" for side in (20, 30, 90)]
    for file in files:
        Image.new("RGB", (int(file.stem), 100)).save(file)
    assert sizes.shorter_side(files) == 30


def test_hostile_files_are_passed_over(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """They are refused later, with the reason; a pipe would block, a WebP take its pixels."""
    good = tmp_path / "good.png"
    Image.new("RGB", (50, 40)).save(good)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    (tmp_path / "bomb.webp").write_bytes(BOMB)
    (tmp_path / "claims.bmp").write_bytes(
        b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\0\x40\0\0\0\x40\0\0\1\0\x18\0" + bytes(24)
    )
    bad = [tmp_path / name for name in ("pipe.png", "cut.tif", "gone.png")]
    assert sizes.shorter_side([*bad, good]) == 40
    assert sizes.shorter_side(bad) == 0
    tracemalloc.start()
    assert sizes.shorter_side([tmp_path / "bomb.webp"]) == 16384
    sizes.shorter_side([tmp_path / "claims.bmp"])
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert not recwarn.list
