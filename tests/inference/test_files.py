"""What `fastunit translate` keeps of image files beside their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit.data import decoding, deep_files, image_io
from fastunit.data.image_io import Reading
from fastunit.data.picture import Wanted
from fastunit.translate import main
from tests.support import profiles


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def translate(*words: object) -> int:
    return main([*map(str, words), "--direction", "a2b", "--device", "cpu"])


def result(model: Path, source: Path, *words: object, suffix: str = ".png") -> Image.Image:
    """Translate a file and return the opened translation."""
    target = source.with_name(f"result{suffix}")
    assert translate(model, source, target, *words) == 0
    with Image.open(target) as image:
        image.load()
        return image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Return a file with alpha, a profile and EXIF data; its pixels stand on their side."""
    exif = Image.Exif()
    exif.update({0x112: 6, 271: "Maker"})
    Image.fromarray(draw(9, 12, 4)).save(tmp_path / "x.png", exif=exif, icc_profile=profiles.wide())
    return tmp_path / "x.png"


def test_colours_are_translated_as_srgb_and_nothing_else_is_kept(model, tmp_path, picture):
    found = result(model, picture)
    srgb = decoding.picture(picture, Reading(), Wanted("convert")).pixels
    image_io.write(srgb, tmp_path / "srgb.png")
    assert found.mode == "RGB" and not found.getexif() and "icc_profile" not in found.info
    assert np.array_equal(found, result(model, tmp_path / "srgb.png"))
    assert not np.array_equal(found, result(model, picture, "--profile", "ignore"))


@pytest.mark.parametrize("profile", ["keep", "ignore"])
def test_the_profile_is_kept_with_the_values(model, tmp_path, picture, profile):
    found = result(model, picture, "--profile", profile)
    assert found.info.get("icc_profile") == (profiles.wide() if profile == "keep" else None)
    image_io.write(np.rot90(draw(9, 12, 4)[..., :3], -1).copy(), tmp_path / "plain.png")
    assert np.array_equal(found, result(model, tmp_path / "plain.png"))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_and_exif_are_kept_on_request(model, picture, suffix):
    found = result(model, picture, "--keep-alpha", "--keep-exif", suffix=suffix)
    assert found.mode == "RGBA" and found.size == (9, 12)
    assert np.array_equal(found.getchannel("A"), np.rot90(draw(9, 12, 4)[..., 3], -1))
    assert found.getexif()[271] == "Maker" and found.getexif().get(0x112, 1) == 1


def test_alpha_is_resized_with_the_pixels(model, picture):
    found = result(model, picture, "--keep-alpha", "--size", 6)
    alpha = Image.fromarray(np.rot90(draw(9, 12, 4)[..., 3], -1).copy())
    assert found.size == (6, 8)
    assert np.array_equal(found.getchannel("A"), alpha.resize((6, 8), Image.Resampling.BILINEAR))


def test_alpha_that_the_format_cannot_hold_is_that_pictures_error(model, tmp_path, picture, capsys):
    (tmp_path / "in").mkdir()
    picture.rename(tmp_path / "in/clear.png")
    image_io.write(draw(9, 12, 3), tmp_path / "in/opaque.png")
    words = tmp_path / "in", tmp_path / "out", "--format", "jpg", "--keep-alpha"
    assert translate(model, *words) == 1
    assert "clear.png: .jpg holds no alpha; choose --format png" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["opaque.jpg"]


# ---- more than 8 bits, and any number of channels


@pytest.mark.parametrize(
    ("bits", "suffix"), [(16, ".png"), (16, ".tif"), (32, ".tif"), (32, ".npy")]
)
def test_values_of_a_range_come_back_in_the_range_of_the_other_domain(
    tmp_path, save_networks, bits, suffix
):
    if suffix == ".tif":
        pytest.importorskip("tifffile")
    ranges = {"data": {"range_a": [-1, 3], "range_b": [100, 4000]}}
    model = save_networks(tmp_path / "run", input_dim_a=1, input_dim_b=1, **ranges)
    x = np.random.default_rng(0).uniform(-1, 3, (9, 14)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / f"out{suffix}"
    assert translate(model, tmp_path / "x.npy", out, "--bits", bits) == 0
    tensor = torch.from_numpy((x + 1) / 2 - 1)[None]
    y = fastunit.load(model, "cpu").translate(tensor, "a2b")[0].numpy()
    expected = 100 + (np.clip(y, -1, 1) + 1) / 2 * 3900
    found = np.load(out) if suffix == ".npy" else exact_values(out)
    assert found.shape[:2] == (9, 14)
    tolerance = 0.51 if bits == 16 else 0.01
    assert np.abs(found.reshape(9, 14) - expected).max() < tolerance


def exact_values(file: Path) -> np.ndarray:
    if file.suffix == ".png":
        return image_io.sixteen_bits(file.read_bytes(), Reading(1))
    return pytest.importorskip("tifffile").imread(file)


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_networks_of_five_channels(tmp_path, save_networks, suffix, capsys):
    pytest.importorskip("tifffile")
    model = save_networks(tmp_path / "run", input_dim_a=5, input_dim_b=2)
    x = draw(9, 14, 5)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / f"out{suffix}"
    assert translate(model, tmp_path / "x.npy", out) == 0
    found = np.load(out) if suffix == ".npy" else exact_values(out)
    expected = fastunit.load(model, "cpu").translate(x, "a2b")
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= 1
    assert translate(model, tmp_path / "x.npy", tmp_path / "out.png") == 2
    assert ".png cannot hold 2 channels; choose --format tif or npy" in capsys.readouterr().err
    image_io.write(draw(9, 14, 3), tmp_path / "x.png")
    assert translate(model, tmp_path / "x.png", out) == 1
    assert "5 channels are read from TIFF and .npy files alone" in capsys.readouterr().err


def test_sixteen_bits_are_not_rounded_to_eight_on_the_way(tmp_path, model):
    steps = 30000 + np.arange(126, dtype=np.uint16).reshape(9, 14)  # half a level of 8 bits
    Image.fromarray(steps).save(tmp_path / "x.png")
    Image.fromarray(np.full((9, 14), 30062, np.uint16)).save(tmp_path / "flat.png")
    for name in ("x", "flat"):
        words = tmp_path / f"{name}.png", tmp_path / f"{name}-out.npy", "--bits", 32
        assert translate(model, *words) == 0
    ramp, flat = (np.load(tmp_path / f"{name}-out.npy") for name in ("x", "flat"))
    assert np.abs(ramp - flat).max() > 1e-6


def test_a_range_that_16_bits_cannot_hold_is_refused(tmp_path, save_networks, capsys):
    model = save_networks(tmp_path / "run", data={"value_range": [-5, 5]})
    np.save(tmp_path / "x.npy", np.zeros((9, 14, 3), np.float32))
    assert translate(model, tmp_path / "x.npy", tmp_path / "y.png", "--bits", 16) == 2
    assert "16 bits cannot hold -5..5; use 32 (--bits 32)" in capsys.readouterr().err


def test_a_16_bit_picture_with_a_wide_profile_is_to_be_kept_with_it(tmp_path, model, capsys):
    values = np.random.default_rng(0).integers(0, 65536, (9, 14, 3), np.uint16)
    deep_files.write(values, tmp_path / "x.png", profile=profiles.wide())
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png") == 1
    assert "keep it, or leave it out (--profile keep or ignore)" in capsys.readouterr().err
    words = tmp_path / "x.png", tmp_path / "y.png", "--profile", "keep", "--bits", 16
    assert translate(model, *words) == 0
    with Image.open(tmp_path / "y.png") as image:
        assert image.info["icc_profile"] == profiles.wide()
