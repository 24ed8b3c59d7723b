"""Reading any picture into the network's channels, and writing it in the extension's format."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fastunit.common.errors import DataError
from fastunit.data import image_io


def colours(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, values: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def luminance(rgb: np.ndarray) -> np.ndarray:
    return (rgb @ np.array([0.299, 0.587, 0.114]))[..., None]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_give_back_what_was_written(tmp_path, suffix, channels):
    values = colours()[..., :channels]
    file = tmp_path / f"new/folder/x{suffix}"
    image_io.write(values, file)
    assert np.array_equal(image_io.read(file, channels), values)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    with Image.open(file) as image:
        assert image.format.lower().startswith(suffix[1:])
        assert image.mode == ("L" if channels == 1 and suffix != ".webp" else "RGB")


def test_jpeg_has_quality_95_and_full_colour_resolution(tmp_path):
    image_io.write(colours(16, 16), tmp_path / "x.JPG")
    saved(tmp_path / "95.jpg", colours(16, 16), quality=95)
    with Image.open(tmp_path / "x.JPG") as image, Image.open(tmp_path / "95.jpg") as reference:
        assert JpegImagePlugin.get_sampling(image) == 0 != JpegImagePlugin.get_sampling(reference)
        assert image.quantization == reference.quantization
    difference = image_io.read(tmp_path / "x.JPG", 3).astype(int) - colours(16, 16)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_gives_the_channels_asked_for(tmp_path, mode, channels):
    suffix = "png" if mode in ("1", "LA", "P") else "tif"  # of which DALI reads TIFFs otherwise
    file = saved(tmp_path / f"x.{suffix}", colours(), mode)
    with Image.open(file) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    values = image_io.read(file, channels)
    assert (values.shape, values.dtype) == ((5, 7, channels), np.uint8)
    expected = expected if channels == 3 else luminance(expected)
    assert np.abs(values.astype(int) - expected).max() <= 1


def test_alpha_is_dropped_not_blended(tmp_path):
    rgba = np.dstack([colours(), np.zeros((5, 7), np.uint8)])
    assert np.array_equal(image_io.read(saved(tmp_path / "x.png", rgba), 3), colours())


@pytest.mark.filterwarnings("error")
def test_transparency_of_a_palette_is_dropped_without_a_warning(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert image_io.read(tmp_path / "x.png", 3).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_rescaled(tmp_path, suffix):
    values = np.array([[0, 257, 25700, 25700 + 128, 25700 + 129, 65535]], np.uint16)
    file = saved(tmp_path / f"x{suffix}", values)
    assert image_io.read(file, 1)[..., 0].tolist() == [[0, 1, 100, 100, 101, 255]]


def test_floats_from_0_to_1_are_rescaled(tmp_path):
    file = saved(tmp_path / "x.tif", np.array([[0, 0.25, 1]], np.float32))
    assert image_io.read(file, 3)[0].tolist() == [[0] * 3, [64] * 3, [255] * 3]


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, name, channels, orientation):
    values = np.zeros((32, 48, channels), np.uint8)
    values[:16, :16], values[16:, :16] = 240, 120
    upright = [np.rot90(values, -turns) for turns in (0, 2, 1, 3)]
    flipped = [values[:, ::-1], values[::-1], values.swapaxes(0, 1), np.rot90(values, 2)]
    flipped[3] = flipped[3].swapaxes(0, 1)
    expected = {
        **dict(zip((1, 3, 6, 8), upright, strict=True)),
        **dict(zip((2, 4, 5, 7), flipped, strict=True)),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    file = saved(tmp_path / name, values.squeeze(), exif=exif)
    found = image_io.read(file, channels)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_the_first_of_several_pages_is_read(tmp_path):
    pages = [Image.fromarray(colours()), Image.new("RGB", (9, 9))]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(image_io.read(tmp_path / "x.tif", 3), colours())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 2]], np.float32), "floating values 0.0..2.0 are not in 0..1"),
        (np.array([[0, np.nan]], np.float32), "are not in 0..1"),
        (np.array([[0, 70_000]], np.int32), "32-bit or signed integers"),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path, values, reason):
    with pytest.raises(DataError, match=reason):
        image_io.read(saved(tmp_path / "x.tif", values), 3)


@pytest.mark.parametrize("kind", ["GIF", "EPS"])  # Pillow would run Ghostscript for an EPS
def test_other_formats_are_not_opened_whatever_their_extension(tmp_path, kind):
    saved(tmp_path / "x.png", colours(), format=kind)
    with pytest.raises(DataError, match=r"not an image .*JPEG, PNG, BMP, TIFF, WEBP"):
        image_io.read(tmp_path / "x.png", 3)


def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(DataError, match="not a regular file"):
        image_io.read(tmp_path / "x.png", 3)


def test_a_size_the_format_cannot_hold_leaves_the_old_file(tmp_path):
    old = saved(tmp_path / "x.webp", colours()).read_bytes()
    with pytest.raises(DataError, match=r"16384x1 pixels cannot be written as \.webp"):
        image_io.write(np.zeros((1, 16384, 3), np.uint8), tmp_path / "x.webp")
    assert (tmp_path / "x.webp").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_disk_refuses_is_an_oserror(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as raised:
        image_io.write(colours(), tmp_path / "file/x.png")
    assert raised.value.errno in (errno.ENOTDIR, errno.EEXIST)
