"""Streams read by Pillow against those read by DALI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.data import dali
from fastunit.data.pipeline import DomainLoader, iter_images

CPU = torch.device("cpu")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def levels(images: torch.Tensor) -> torch.Tensor:
    return (images + 1) * 127.5


def both(files: list[Path], batches: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first samples of the stream by DALI and by Pillow, in grey levels."""
    pytest.importorskip("nvidia.dali", reason="the stream that Pillow's must equal")
    defaults: dict[str, Any] = dict(
        channels=3, batch_size=4, seed=5, stream=1, new_size=None, crop=(16, 16)
    )
    found = []
    for loader in ("dali", "pillow"):
        stream = DomainLoader(files, device=CPU, loader=loader, **(defaults | options))
        found.append(levels(torch.cat([next(stream) for _ in range(batches)])))
    return found[0], found[1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("new_size", [None, 17, 24, 40, 90])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_the_stream_is_dalis_up_to_one_level(tmp_path, suffix, new_size, channels):
    """Noise of many sizes, shrunk up to 7 times and enlarged, edges and corners included."""
    sizes = [(40, 33), (33, 40), (41, 120), (118, 37), (24, 24), (77, 17), (63, 64)]
    files = [tmp_path / f"{i}.{suffix}" for i in range(len(sizes))]
    for i, (file, size) in enumerate(zip(files, sizes, strict=True)):
        noise(*size, seed=i).save(file)
    ours, theirs = both(files, 8, new_size=new_size, channels=channels)
    difference = (ours - theirs).abs()
    assert difference.max() < 1.01
    assert difference.mean() < 0.3 and ours.std() > 5


@pytest.mark.parametrize("new_size", [32, 150, 286])
def test_photographs_are_dalis_up_to_one_level(shared, new_size):
    files = sorted((shared / "data/day2night_amos/trainA").iterdir())[:12]
    side = min(new_size, 128)
    ours, theirs = both(files, 4, new_size=new_size, crop=(side, side - side // 4))
    assert (ours - theirs).abs().max() < 1.01


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA", "1", "L", "I;16", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_dalis_up_to_one_level(tmp_path, mode, channels):
    if mode == "I;16":
        values = np.random.default_rng(1).integers(0, 65536, (30, 40), np.uint16)
        image = Image.fromarray(values)
    else:
        image = noise(40, 30).convert("RGB").convert(mode)
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(file)
    ours, theirs = both([file], 4, channels=channels)
    assert (ours - theirs).abs().max() < 1.01


def test_orientation_is_applied_before_the_crop(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(50, 30).save(tmp_path / "x.png", exif=exif)
    ours, theirs = both([tmp_path / "x.png"], 4, crop=(48, 28))
    assert (ours - theirs).abs().max() < 1.01


@pytest.mark.parametrize("channels", [1, 3])
def test_ranges_of_16_bit_values_are_dalis(tmp_path, channels):
    values = np.random.default_rng(1).integers(900, 2100, (30, 40), np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    options: dict[str, Any] = dict(channels=channels, value_range=(1000, 2000))
    ours, theirs = both([tmp_path / "x.png"], 4, **options)
    assert (ours - theirs).abs().max() < 0.01
    assert ours.min() == 0 and ours.max() == 255


def test_test_images_are_dalis_up_to_one_level(tmp_path):
    pytest.importorskip("nvidia.dali", reason="the images that Pillow's must equal")
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        noise(31 + i, 40 - i, seed=i).save(file)
    for crop in (None, (15, 18)):
        options: dict[str, Any] = dict(channels=3, batch_size=2, crop=crop, new_size=19, device=CPU)
        by_dali = list(iter_images(files, loader="dali", **options))
        by_pillow = list(iter_images(files, loader="pillow", **options))
        assert [x.shape for x in by_dali] == [x.shape for x in by_pillow]
        for x, y in zip(by_dali, by_pillow, strict=True):
            assert (levels(x) - levels(y)).abs().max() < 1.01


def test_the_reader_may_change_in_the_middle_of_a_stream(tmp_path):
    """At sample 28 of an epoch of 5 files, with flips and crops."""
    pytest.importorskip("nvidia.dali", reason="one of the readers")
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(files):
        noise(40 + i, 30, seed=i).save(file)
    options: dict[str, Any] = dict(
        channels=3, batch_size=4, crop=(16, 16), new_size=24, seed=9, stream=0
    )
    whole = DomainLoader(files, device=CPU, loader="dali", **options)
    for _ in range(7):
        next(whole)
    rest = DomainLoader(
        files, device=CPU, loader="pillow", position=whole.position, threads=3, **options
    )
    for _ in range(3):
        assert (levels(next(whole)) - levels(next(rest))).abs().max() < 1.01


def test_what_is_chosen_and_said_without_dali(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert not dali.used("auto") and not dali.used("pillow")
    dali.announce("pillow")
    assert not caplog.messages
    dali.announce("auto")
    (said,) = caplog.messages
    assert "images are read by Pillow" in said and "data.loader" in said and "\n" not in said


def test_with_dali_it_is_chosen_in_silence(caplog):
    pytest.importorskip("nvidia.dali", reason="what is chosen")
    assert dali.used("auto") and dali.used("dali") and not dali.used("pillow")
    dali.announce("auto")
    assert not caplog.messages
