"""Files of 16 bits, floating numbers and many channels give back what was written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data import deep_files, image_io
from fastunit.data.image_io import Reading
from tests.support import profiles

tifffile = pytest.importorskip("tifffile", reason="reads the files")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def test_values_are_of_the_range_rounded_to_nearest():
    y = np.array([[[-2.0, -1, 0, 1, 2]]], np.float32)
    for bits, bounds, expected in (
        (8, None, [0, 0, 128, 255, 255]),
        (8, (10, 20), [0, 0, 128, 255, 255]),
        (16, None, [0, 0, 32768, 65535, 65535]),
        (16, (100, 401), [100, 100, 250, 401, 401]),
        (32, None, [0, 0, 0.5, 1, 1]),
        (32, (-2, 6), [-2, -2, 2, 6, 6]),
    ):
        found = deep_files.values_of(y, bits, bounds)
        assert found.dtype == {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
        assert found.ravel().tolist() == expected
    with pytest.raises(DataError, match=re.escape("16 bits cannot hold -2..6; use 32 (--bits 32)")):
        deep_files.values_of(y, 16, (-2, 6))


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_arrays_and_tiffs_give_back_what_was_written(tmp_path, channels, bits, suffix):
    values = deep_files.values_of(draw(9, 14, channels), bits, None)
    deep_files.write(values, tmp_path / f"new/x{suffix}")
    file = tmp_path / f"new/x{suffix}"
    found = np.load(file) if suffix == ".npy" else tifffile.imread(file)
    assert found.dtype == values.dtype
    assert np.array_equal(found.reshape(values.shape), values)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_of_16_bits(tmp_path, channels):
    values = deep_files.values_of(draw(9, 14, channels), 16, None)
    deep_files.write(values, tmp_path / "x.png")
    found = image_io.sixteen_bits((tmp_path / "x.png").read_bytes(), Reading(channels))
    assert np.array_equal(found, values)
    with Image.open(tmp_path / "x.png") as image:
        image.verify()


def test_png_of_16_bits_with_everything_beside(tmp_path):
    values = deep_files.values_of(draw(9, 14, 3), 16, None)
    alpha = np.random.default_rng(0).integers(0, 256, (9, 14), np.uint8)
    exif = Image.Exif()
    exif[271] = "Maker"
    deep_files.write(
        values, tmp_path / "x.png", alpha=alpha, profile=profiles.wide(), exif=exif.tobytes()
    )
    with Image.open(tmp_path / "x.png") as image:
        assert image.info["icc_profile"] == profiles.wide() and image.getexif()[271] == "Maker"
        assert np.array_equal(image.getchannel("A"), alpha)
    assert np.array_equal(
        image_io.sixteen_bits((tmp_path / "x.png").read_bytes(), Reading(3)), values
    )


def test_a_tiff_keeps_its_profile(tmp_path):
    values = deep_files.values_of(draw(9, 14, 3), 16, None)
    deep_files.write(values, tmp_path / "x.tif", profile=profiles.wide())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        assert file.pages[0].iccprofile == profiles.wide()
    with pytest.raises(DataError, match=r"\.tif of uint16 is written without exif; leave it out"):
        deep_files.write(values, tmp_path / "y.tif", exif=b"x")
    assert not (tmp_path / "y.tif").exists()


@pytest.mark.parametrize(
    ("name", "bits", "channels", "message"),
    [
        ("x.jpg", 16, 3, ".jpg cannot hold 16 bits; choose --format tif, png or npy"),
        ("x.png", 32, 1, ".png cannot hold 32 bits; choose --format tif or npy"),
        ("x.png", 8, 5, ".png cannot hold 5 channels; choose --format tif or npy"),
    ],
)
def test_formats_that_cannot_hold_the_values_are_refused(name, bits, channels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        deep_files.check(Path(name), bits, channels)


def test_other_formats_are_accepted():
    for name, bits, channels in (("x.jpg", 8, 3), ("x.PNG", 16, 1), ("x.tiff", 32, 9)):
        deep_files.check(Path(name), bits, channels)
