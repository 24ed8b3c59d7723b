"""Values that 8 bits cannot hold, in any number of channels: as stated, in training and after."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data import decoding, exact
from fastunit.data.image_io import Limits, Reading
from fastunit.data.picture import Wanted
from fastunit.data.pipeline import DomainLoader
from fastunit.data.validation import SizeRule, problem, validate

tifffile = pytest.importorskip("tifffile", reason="writes the files")
RANGE = (-2.0, 6.0)
SAMPLES = {"photometric": "minisblack", "planarconfig": "contig"}  # not pages


def draw(*shape: int, low: float = -2.0, high: float = 6.0) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(low, high, shape).astype(np.float32)


def mapped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(float) - low) / (high - low), 0, 1).astype(np.float64) * 2 - 1


def saved(file: Path, values: np.ndarray, **options: object) -> Path:
    if file.suffix == ".npy":
        np.save(file, values)
    else:
        tifffile.imwrite(file, values, **options)
    return file


def read(file: Path, reading: Reading) -> np.ndarray:
    return decoding.picture(file, reading, Wanted()).pixels


# ---- what is read


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_floating_values_of_any_channels_are_as_stated(tmp_path, as_trained, channels, suffix):
    values = draw(9, 14, channels)
    options = SAMPLES | ({"photometric": "rgb"} if channels == 3 else {})
    gray = channels == 1
    file = saved(
        tmp_path / f"x{suffix}", values[..., 0] if gray else values, **({} if gray else options)
    )
    expected = mapped(values, *RANGE)
    reading = Reading(channels, RANGE)
    for found in (read(file, reading), as_trained(file, channels, value_range=RANGE, exact=True)):
        assert found.dtype == np.float32 and found.shape == (9, 14, channels)
        assert np.abs(found - expected).max() < 1e-6
    assert problem(file, SizeRule(None, None, reading)) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_whole_numbers_have_the_range_of_their_type(tmp_path, as_trained, dtype, suffix):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (9, 14, 5), dtype)
    file = saved(tmp_path / f"x{suffix}", values, **SAMPLES)
    expected = mapped(values, 0, np.iinfo(dtype).max)
    assert np.abs(read(file, Reading(5)) - expected).max() < 1e-6
    assert np.abs(as_trained(file, 5, exact=True) - expected).max() < 1e-6


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bit_colours_keep_all_bits_in_translation(tmp_path, kind):
    from fastunit.data import deep_files

    values = np.random.default_rng(0).integers(0, 65536, (9, 14, 3), np.uint16)
    deep_files.write(values, tmp_path / f"x.{kind}")
    found = read(tmp_path / f"x.{kind}", Reading(3))
    assert np.abs(found - mapped(values, 0, 65535)).max() < 1e-6


def test_a_floating_gray_tiff_is_repeated_in_colours_and_colours_become_luminance(tmp_path):
    gray, colours = draw(9, 14, low=0, high=1), draw(9, 14, 3, low=0, high=1)
    file = saved(tmp_path / "gray.tif", gray)
    assert np.abs(read(file, Reading(3)) - mapped(gray[..., None], 0, 1)).max() < 1e-6
    file = saved(tmp_path / "colours.tif", colours, photometric="rgb")
    luminance = colours @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(file, Reading(1))[..., 0] - mapped(luminance, 0, 1)).max() < 1e-6


def test_planes_and_pages_are_channels_and_alpha_is_dropped(tmp_path):
    values = draw(5, 9, 14)
    file = saved(tmp_path / "planes.tif", values, photometric="minisblack", planarconfig="separate")
    expected = mapped(np.moveaxis(values, 0, 2), *RANGE)
    assert np.abs(read(file, Reading(5, RANGE)) - expected).max() < 1e-6
    file = saved(tmp_path / "pages.tif", values, photometric="minisblack")
    with tifffile.TiffFile(file) as tiff:
        assert len(tiff.pages) == 5
    assert np.abs(read(file, Reading(5, RANGE)) - expected).max() < 1e-6
    rgba = draw(9, 14, 4)
    file = saved(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.abs(read(file, Reading(3, RANGE)) - mapped(rgba[..., :3], *RANGE)).max() < 1e-6


def test_fortran_order_and_big_endian_arrays(tmp_path):
    values = draw(9, 14, 5)
    for number, other in enumerate((np.asfortranarray(values), values.astype(">f8"))):
        file = saved(tmp_path / f"{number}.npy", other)
        assert np.abs(read(file, Reading(5, RANGE)) - mapped(values, *RANGE)).max() < 1e-6


# ---- training


def test_big_endian_whole_numbers_have_the_range_of_their_type(tmp_path, as_trained):
    values = np.random.default_rng(0).integers(0, 65536, (9, 8, 3)).astype(">u2")
    np.save(tmp_path / "x.npy", values)
    found = as_trained(tmp_path / "x.npy", 3, exact=True)
    np.testing.assert_allclose(found, values / 65535 * 2 - 1, atol=1e-6)


def test_a_check_reads_a_domain_with_arrays_as_training_does(tmp_path):
    """Beside an array, TIFFs are read by the reader of arrays, which turns none."""
    array, upright, turned = (tmp_path / n for n in ("a.npy", "upright.tif", "turned.tif"))
    np.save(array, np.zeros((9, 8, 3), np.uint8))
    gray = Image.fromarray(np.random.default_rng(0).random((9, 8), np.float32))
    gray.save(upright)
    gray.save(turned, tiffinfo={274: 6})
    options = {"rule": SizeRule(None, None, Reading(3)), "workers": 1, "skip_bad": False}
    assert tuple(validate([array, upright], **options)) == (array, upright)
    for files, reason in (([turned], "mode F"), ([array, turned], "to be turned")):
        with pytest.raises(DataError, match=rf"turned\.tif: .*{reason}"):
            validate(files, **options)


def test_a_stream_crops_resizes_and_mirrors_any_channels(tmp_path):
    ramp = np.linspace(-2, 6, 40, dtype=np.float32)[None, :, None] + np.zeros((30, 40, 5), "f4")
    file = saved(tmp_path / "x.npy", ramp)
    framing = {"batch_size": 8, "crop": (8, 12), "new_size": 20, "seed": 0, "stream": 0}
    stream = DomainLoader(
        [file], channels=5, device=torch.device("cpu"), value_range=RANGE, **framing
    )
    batch = next(stream)
    assert batch.shape == (8, 5, 8, 12) and batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    steps = batch.diff(dim=3)
    slope = 2 / 39 * 30 / 20  # of a pixel of the resized ramp
    torch.testing.assert_close(steps.abs(), torch.full_like(steps, slope), rtol=0, atol=2e-2)
    assert len(steps[:, 0, 0, 5].sign().unique()) == 2  # some are mirrored
    assert len(batch[:, 0, 0, 0].unique()) > 3


def test_arrays_and_pictures_of_8_bits_train_together(tmp_path, as_trained):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    stream = DomainLoader(
        [saved(tmp_path / "x.npy", pixels), tmp_path / "x.png"],
        **{"channels": 3, "batch_size": 2, "crop": (9, 14), "new_size": None, "seed": 0},
        **{"stream": 0, "device": torch.device("cpu"), "flip": False},
    )
    expected = torch.from_numpy(mapped(pixels, 0, 255)).permute(2, 0, 1).float()
    torch.testing.assert_close(next(stream), expected.expand(2, -1, -1, -1))


# ---- what is refused


def array(values: np.ndarray, cut: int = 0) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    data = stream.getvalue()
    return data[: len(data) - cut]


def tiff(values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def huge() -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


REFUSED = [
    (array(draw(9, 14, 4)), Reading(5, RANGE), r"4 channels, where the domain has 5 \(input_dim\)"),
    (array(draw(9, 14, 4)), Reading(3, RANGE), "4 channels, where the domain has 3"),
    (array(draw(9)), Reading(1), r"shape \(9,\); it must be \[H, W\] or \[H, W, C\]"),
    (array(np.zeros((9, 14), complex)), Reading(1), "complex128; it must be of real numbers"),
    (array(draw(9, 14, 5), cut=1), Reading(5, RANGE), "damaged or truncated"),
    (array(draw(9, 14, 5))[:40], Reading(5, RANGE), "damaged or truncated"),
    (huge(), Reading(1), "too large: 1000000x1000000 pixels"),
    (
        array(draw(9, 14, 5)),
        Reading(5),
        r"not in 0\.\.1; state their range, as in --set",
    ),
    (array(np.zeros((9, 14), np.int16)), Reading(1), "int16 have no usual range; state their"),
    (array(np.full((9, 14), np.nan, "f4")), Reading(1), r"nan\.\.nan are not in 0\.\.1"),
    (array(np.full((9, 14), np.nan, "f4")), Reading(1, RANGE), "its values are not all finite"),
    (array(np.array([[{}]], object)), Reading(1), "must be of real numbers"),
    (tiff(draw(9, 14, 5), **SAMPLES), Reading(4, RANGE), "5 channels, where the domain has 4"),
    (tiff(draw(9, 14, 5), **SAMPLES)[:300], Reading(5, RANGE), "cannot be read as TIFF"),
    (tiff(draw(9, 14), photometric="miniswhite"), Reading(2), "zero is white"),
    (b"\x89PNG\r\n\x1a\n", Reading(5), "5 channels are read from TIFF and .npy files alone"),
]


@pytest.mark.parametrize(("data", "reading", "message"), REFUSED)
def test_other_files_are_refused(data, reading, message):
    with pytest.raises(DataError, match=message):
        exact.decode(data, reading, deep=True)


def test_limits_hold_for_arrays(tmp_path):
    file = saved(tmp_path / "x.npy", draw(9, 14, 5))
    with pytest.raises(DataError, match=r"too large: 14x9 pixels, more than data\.max_pixels=100"):
        read(file, Reading(5, RANGE, limits=Limits(pixels=100)))
