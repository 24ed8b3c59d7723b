"""What `fastunit translate` keeps of image files beside their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastunit.data import decoding, image_io
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
