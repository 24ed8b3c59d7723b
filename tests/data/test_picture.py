"""What belongs to an image's pixels: alpha, colour profile and EXIF data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fastunit.common.errors import DataError
from fastunit.data import decoding, image_io
from fastunit.data import picture as pictures
from fastunit.data.image_io import Reading
from fastunit.data.picture import Wanted
from tests.support import profiles

ALL = Wanted("keep", alpha=True, exif=True)


def colours(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (9, 12, channels), dtype=np.uint8)


def read(file: Path, wanted: Wanted, channels: int = 3) -> pictures.Picture:
    """Read in this process, and check that the other one gives the same."""
    here = pictures.read(file.read_bytes(), Reading(channels), wanted)
    there = decoding.picture(file, Reading(channels), wanted)
    assert np.array_equal(here.pixels, there.pixels)
    assert (here.alpha is None) == (there.alpha is None)
    assert here.alpha is None or np.array_equal(here.alpha, there.alpha)
    assert (here.profile, here.exif) == (there.profile, there.exif)
    return here


def test_without_anything_beside_there_is_nothing(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "x.png")
    found = read(tmp_path / "x.png", ALL)
    assert np.array_equal(found.pixels, colours())
    assert (found.alpha, found.profile, found.exif) == (None, b"", b"")


# ---- colour profiles


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_converted_to_srgb(tmp_path, suffix, alpha):
    file, x = tmp_path / f"x.{suffix}", colours(3 + alpha)
    Image.fromarray(x).save(file, icc_profile=profiles.wide(), lossless=True)
    found = read(file, Wanted())
    expected = profiles.wide_to_srgb(x[..., :3].astype(float))
    assert np.abs(found.pixels - expected).max() < 1.5 and found.profile == b""
    assert np.abs(x[..., :3] - expected).max() > 20
    with Image.open(file) as image:
        assert np.array_equal(image_io.from_image(image, Reading()), found.pixels)


def test_gray_is_converted_to_srgb(tmp_path):
    x = colours()[..., 0]
    Image.fromarray(x).save(tmp_path / "x.png", icc_profile=profiles.gray())
    expected = profiles.srgb_levels((x / 255) ** 1.8)
    for channels in (1, 3):
        found = read(tmp_path / "x.png", Wanted(), channels)
        assert np.abs(found.pixels - expected[..., None]).max() < 1.5


def test_a_profile_is_kept_or_ignored(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "x.png", icc_profile=profiles.wide())
    kept = read(tmp_path / "x.png", Wanted("keep"))
    ignored = read(tmp_path / "x.png", Wanted("ignore"))
    assert kept.profile == profiles.wide() and ignored.profile == b""
    assert np.array_equal(kept.pixels, colours()) and np.array_equal(ignored.pixels, colours())


def test_srgb_and_profiles_of_other_colours_change_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, profile in enumerate((srgb, profiles.gray())):
        file = tmp_path / f"{number}.png"
        Image.fromarray(colours()).save(file, icc_profile=profile)
        assert np.array_equal(read(file, Wanted()).pixels, colours())


def test_a_damaged_profile_is_refused_with_the_remedy(tmp_path):
    damaged = profiles.wide()[:140]
    Image.fromarray(colours()).save(tmp_path / "x.png", icc_profile=damaged)
    with pytest.raises(DataError, match=r"its ICC profile is damaged .* --profile ignore"):
        decoding.picture(tmp_path / "x.png", Reading(), Wanted())
    assert np.array_equal(read(tmp_path / "x.png", Wanted("ignore")).pixels, colours())


# ---- alpha


def test_alpha_of_every_kind(tmp_path):
    x, alpha = colours(4), colours(4)[..., 3]
    Image.fromarray(x).save(tmp_path / "rgba.png")
    Image.fromarray(x[..., :2]).save(tmp_path / "la.png")  # mode LA
    Image.fromarray(x[..., :3]).save(tmp_path / "key.png", transparency=tuple(x[0, 0, :3]))
    Image.fromarray(x).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    assert np.array_equal(read(tmp_path / "rgba.png", ALL).alpha, alpha)
    assert np.array_equal(read(tmp_path / "rgba.webp", ALL).alpha, alpha)
    assert np.array_equal(read(tmp_path / "la.png", ALL).alpha, x[..., 1])
    key = read(tmp_path / "key.png", ALL).alpha
    assert key[0, 0] == 0 and (key == 255).sum() == key.size - 1
    assert read(tmp_path / "rgba.png", Wanted()).alpha is None


def test_a_palettes_transparency(tmp_path):
    image = Image.fromarray(colours()[..., 0] % 4, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "x.png", transparency=bytes([0, 100, 200, 255]))
    expected = np.array([0, 100, 200, 255])[colours()[..., 0] % 4]
    assert np.array_equal(read(tmp_path / "x.png", ALL).alpha, expected)


def test_alpha_is_turned_upright_with_the_pixels_and_opaque_is_none(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(colours(4)).save(tmp_path / "x.png", exif=exif)
    found = read(tmp_path / "x.png", ALL)
    assert np.array_equal(found.alpha, np.rot90(colours(4)[..., 3], -1))
    assert np.array_equal(found.pixels, np.rot90(colours(4)[..., :3], -1))
    opaque = colours(4)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", ALL).alpha is None


# ---- EXIF


def with_exif() -> Image.Exif:
    exif = Image.Exif()
    exif.update({0x112: 6, 271: "Maker", 306: "2020:01:01 00:00:00", 256: 12})
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0x829A: 0.01, 0xA002: 12, 0xA003: 9}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_is_that_of_an_upright_image(tmp_path, suffix):
    Image.fromarray(colours()).save(tmp_path / f"x.{suffix}", exif=with_exif().tobytes())
    data = read(tmp_path / f"x.{suffix}", ALL).exif
    found = Image.Exif()
    found.load(data)
    assert {tag: found[tag] for tag in found if tag < 0x8000} == {
        271: "Maker",
        306: "2020:01:01 00:00:00",
    }
    assert dict(found.get_ifd(0x8769)) == {0x9003: "2020:01:01 00:00:00", 0x829A: 0.01}
    assert dict(found.get_ifd(0x8825)) == {1: "N", 2: (1.0, 2.0, 3.0)}
    assert read(tmp_path / f"x.{suffix}", Wanted()).exif == b""


# ---- writing


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_everything_is_written_beside_the_pixels(tmp_path, suffix):
    Image.fromarray(colours(4)).save(
        tmp_path / "x.png", exif=with_exif(), icc_profile=profiles.wide()
    )
    first = read(tmp_path / "x.png", ALL)
    file = tmp_path / f"y.{suffix}"
    image_io.write(first.pixels, file, alpha=first.alpha, profile=first.profile, exif=first.exif)
    second = read(file, ALL)
    shown = first.alpha > 0  # WebP may drop the colours of what is transparent
    assert np.array_equal(second.pixels[shown], first.pixels[shown])
    assert np.array_equal(second.alpha, first.alpha) and second.profile == first.profile
    old, new = Image.Exif(), Image.Exif()
    old.load(first.exif), new.load(second.exif)
    assert old.get_ifd(0x8769) == new.get_ifd(0x8769) and old[271] == new[271]


@pytest.mark.parametrize(
    ("suffix", "beside", "message"),
    [
        (".jpg", {"alpha": np.zeros((9, 12), np.uint8)}, "^.jpg holds no alpha; choose --format"),
        (".bmp", {"exif": b"x"}, ".bmp holds no EXIF data"),
        (".bmp", {"profile": b"x"}, ".bmp holds no ICC profile"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, suffix, beside, message):
    with pytest.raises(DataError, match=message):
        image_io.write(colours(), tmp_path / f"x{suffix}", **beside)
    assert not list(tmp_path.iterdir())
