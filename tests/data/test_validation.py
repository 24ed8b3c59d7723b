"""Checking image files: every kind of bad file is named with its reason before training."""

from __future__ import annotations

import logging
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from fastunit.common.errors import DataError
from fastunit.data import image_io, validation
from fastunit.data.pipeline import iter_images
from fastunit.data.validation import SizeRule, problem, validate, validate_all
from tests.support.doubles import raising
from tests.support.files import cut, flip_byte, picture, saved

pytest.importorskip("nvidia.dali", reason="the files are checked with NVIDIA DALI")
ANY = SizeRule(None, None)


def saved_size(path: Path, width: int, **options) -> Path:
    picture(width).save(path, **options)
    return path


def check(files, rule=ANY, skip_bad=False, **options):
    return validate(files, rule=rule, workers=2, skip_bad=skip_bad, **options)


def bomb(path: Path) -> None:
    """A PNG whose header claims 40,000 x 40,000 pixels."""

    def chunk(content: bytes) -> bytes:
        length, checksum = len(content) - 4, zlib.crc32(content)
        return struct.pack(">I", length) + content + struct.pack(">I", checksum)

    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(header) + chunk(b"IDAT" + b"x" * 99))


def truncated(path: Path) -> None:
    cut(saved(path))


def corrupt_png(path: Path) -> None:
    flip_byte(path, saved(path).read_bytes().index(b"IDAT") + 100)


def wide_integers(path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(path)


def wide_floats(path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.float32).reshape(8, 8)).save(path)


BAD = {
    "zero.jpg": (lambda p: p.touch(), "empty: zero bytes"),
    "text.jpg": (lambda p: p.write_text("no image\n" * 50), "not an image"),
    "cut.jpg": (truncated, "damaged or truncated"),
    "cut.png": (truncated, "damaged or truncated"),
    "cut.bmp": (truncated, "damaged or truncated"),
    "cut.tiff": (truncated, "damaged or truncated"),
    "cut.webp": (truncated, "damaged or truncated"),
    "corrupt.png": (corrupt_png, "damaged or truncated"),
    "bomb.png": (bomb, "too large"),
    "folder.jpg": (lambda p: p.mkdir(), "a folder"),
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "dangling.jpg": (lambda p: p.symlink_to("nowhere"), "a link to a file that does not exist"),
    "gone.jpg": (lambda p: None, "No such file"),
    "gif.png": (lambda p: saved(p, format="GIF"), "not an image of the formats"),
    "tga.jpg": (lambda p: saved(p, format="TGA"), "not an image of the formats"),
    "pcx.bmp": (lambda p: saved(p, format="PCX"), "not an image of the formats"),
    # Pillow would hand this one to Ghostscript, a program, if it were asked to take any format.
    "eps.jpg": (lambda p: saved(p, format="EPS"), "not an image of the formats"),
    "bits.tiff": (lambda p: saved(p, "1"), "cannot decode TIFF in mode 1"),
    "int32.tiff": (wide_integers, "32-bit or signed integers"),
    "la.tiff": (lambda p: saved(p, "LA"), "TIFF of 2 samples per pixel"),
    "lab.tiff": (lambda p: saved(p, "LAB"), "TIFF of photometric interpretation 8"),
    "float.tiff": (wide_floats, "values 0.0..63.0 are not in 0..1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_with_the_reason(tmp_path, name):
    make, reason = BAD[name]
    good = saved(tmp_path / "good.png")
    make(tmp_path / name)
    with pytest.raises(DataError) as error:
        check([good, tmp_path / name])
    message = str(error.value)
    assert f"{tmp_path / name}: " in message and reason in message
    assert "1 of 2 image files" in message and "--set data.skip_bad=true" in message
    assert str(good) not in message
    assert check([good, tmp_path / name], skip_bad=True) == (good,)


def test_unreadable_file(tmp_path, monkeypatch):
    files = [saved(tmp_path / "a.png"), saved(tmp_path / "b.png")]
    files[0].chmod(0)
    if os.access(files[0], os.R_OK):  # root reads everything: do as the kernel does for others
        monkeypatch.setattr(os, "open", raising(PermissionError(13, "Permission denied")))
        with pytest.raises(DataError, match=r"^Permission denied$"):
            image_io.content(files[0])
        return
    with pytest.raises(DataError, match=r"a\.png: Permission denied"):
        check(files)
    files[0].chmod(0o600)
    assert check(files) == tuple(files)  # refusals are not remembered


GOOD = [
    *[("RGB", f"x.{suffix}", {}) for suffix in ("jpg", "png", "bmp", "tiff", "webp")],
    *[("L", f"x.{suffix}", {}) for suffix in ("jpg", "png", "bmp", "tiff", "webp")],
    *[("RGBA", f"x.{suffix}", {}) for suffix in ("png", "tiff", "webp")],
    *[("P", f"x.{suffix}", {}) for suffix in ("png", "bmp", "tiff")],
    *[("1", f"x.{suffix}", {}) for suffix in ("png", "bmp")],
    *[("CMYK", f"x.{suffix}", {}) for suffix in ("jpg", "tiff")],
    ("RGB", "progressive.jpg", {"progressive": True}),
    ("RGB", "lossless.webp", {"lossless": True}),
    ("LA", "x.png", {}),
    ("P", "clear.png", {"transparency": 3}),
    ("I;16", "x.png", {}),
    ("I;16", "x.tiff", {}),
    ("RGB", "jpeg.tiff", {"compression": "jpeg"}),
    ("RGB", "lzw.tiff", {"compression": "tiff_lzw"}),
    ("RGB", "deflate.tiff", {"compression": "tiff_adobe_deflate"}),
    ("1", "fax.tiff", {"compression": "group4"}),
    ("RGB", "jpeg_named.png", {"format": "JPEG"}),
    ("RGB", "animated.webp", {"save_all": True, "append_images": [picture().rotate(90)]}),
    ("RGB", "pages.tiff", {"save_all": True, "append_images": [picture().rotate(90)]}),
]


@pytest.mark.parametrize(("mode", "name", "options"), GOOD)
def test_what_dali_decodes_is_accepted(tmp_path, mode, name, options):
    assert problem(saved(tmp_path / name, mode, **options), SizeRule(None, (36, 48))) is None


def test_truncated_images_are_never_loaded_leniently(tmp_path):
    truncated(tmp_path / "cut.jpg")
    assert "truncated" in problem(tmp_path / "cut.jpg", ANY)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_too_small_gives_both_sizes(tmp_path):
    file = saved(tmp_path / "x.png")
    assert "48x36 pixels, for a crop of 40x37 " in problem(file, SizeRule(None, (37, 40)))
    assert "48x36 pixels, 32x24 after resizing" in problem(file, SizeRule(24, (24, 33)))
    assert problem(file, SizeRule(24, (24, 32))) is None
    assert problem(file, SizeRule(72, (72, 96))) is None


def test_size_counts_after_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = saved(tmp_path / "x.jpg", exif=exif)
    assert problem(file, SizeRule(None, (48, 36))) is None
    assert "36x48 pixels" in problem(file, SizeRule(None, (36, 48)))


def test_a_size_is_accepted_exactly_where_the_crop_lies_inside(tmp_path):
    """For random sizes, crops taller and wider than new_size among them, as DALI resizes them."""
    random = np.random.default_rng(3)
    for trial in range(60):
        width, height = (int(side) for side in random.integers(4, 120, 2))
        new_size = int(random.integers(4, 60)) if trial % 4 else None
        file = tmp_path / f"{trial}.png"
        Image.new("L", (width, height)).save(file)
        options = dict(channels=1, batch_size=1, new_size=new_size, device=torch.device("cpu"))
        (whole,) = iter_images([file], crop=None, **options)
        resized = whole.shape[2:]
        for more in ((0, 0), (1, 0), (0, 1), (-1, -1)):
            crop = (max(1, resized[0] + more[0]), max(1, resized[1] + more[1]))
            fits = crop[0] <= resized[0] and crop[1] <= resized[1]
            assert (problem(file, SizeRule(new_size, crop)) is None) == fits
            if fits:
                (image,) = iter_images([file], crop=crop, **options)
                assert tuple(image.shape[2:]) == crop


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_are_refused_where_a_domain_has_other_channels(tmp_path, channels):
    Image.new("RGBA", (8, 8)).save(tmp_path / "x.png")
    rule = SizeRule(None, None, image_io.Reading(channels))
    with pytest.raises(DataError, match=f"x.png: {channels} channels are read from TIFF and .npy"):
        check([tmp_path / "x.png"], rule)


def test_a_file_is_checked_anew_for_other_channels_and_another_definition(tmp_path, monkeypatch):
    file = saved(tmp_path / "x.png")
    read, measure = [], validation._measure
    monkeypatch.setattr(validation, "_measure", lambda *args: read.append(args) or measure(*args))
    for channels in (3, 1, 3, 1):
        check([file], SizeRule(None, None, image_io.Reading(channels)))
    assert len(read) == 2
    monkeypatch.setattr(validation, "_DEFINITION", validation._DEFINITION + 1)
    check([file])
    assert len(read) == 3


def test_metadata_after_chunks_of_odd_lengths_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for width in range(20, 30):  # chunks before the EXIF data have odd and even lengths
        file = saved_size(tmp_path / "x.webp", width, lossless=True, exif=exif)
        assert problem(file, ANY) is None
        assert image_io.read(file, 3).shape == (width, 36, 3)


def test_all_bad_files_are_listed_together_up_to_twenty(tmp_path):
    bad = [tmp_path / f"{i:02}.jpg" for i in range(23)]
    for file in bad:
        file.touch()
    good = saved(tmp_path / "good.png")
    with pytest.raises(DataError) as error:
        check([*bad, good])
    message = str(error.value)
    assert "23 of 24 image files" in message and "and 3 more" in message
    assert all((file.name in message) == (i < 20) for i, file in enumerate(bad))


@pytest.mark.parametrize("skip_bad", [False, True])
def test_nothing_but_bad_files_is_an_error_either_way(tmp_path, skip_bad):
    (tmp_path / "x.jpg").touch()
    with pytest.raises(DataError, match="1 of 1 image files") as error:
        check([tmp_path / "x.jpg"], skip_bad=skip_bad)
    assert "No usable image is left" in str(error.value)
    assert "skip_bad" not in str(error.value)


def test_groups_are_reported_together_each_by_its_own_rule(tmp_path, capsys):
    a, b = saved(tmp_path / "a.png"), saved(tmp_path / "b.png")
    (tmp_path / "zero.jpg").touch()
    small, large = SizeRule(None, (20, 20)), SizeRule(None, (40, 40))
    groups = {"train_a": ([a, tmp_path / "zero.jpg"], small), "train_b": ([b, a], small)}
    options = {"workers": 2, "skip_bad": True}
    expected = {"train_a": (a,), "train_b": (b, a), "test_a": ()}
    assert validate_all({**groups, "test_a": ((), small)}, **options) == expected
    assert capsys.readouterr().err.count("100%") == 1
    with pytest.raises(DataError, match=r"is left in train_b$") as error:
        validate_all(groups | {"train_b": ([b], large)}, **options)
    assert "zero.jpg: empty" in str(error.value) and "b.png: too small" in str(error.value)


def test_skipping_logs_how_many(tmp_path, caplog):
    (tmp_path / "x.jpg").touch()
    files = [saved(tmp_path / "b.png"), tmp_path / "x.jpg", saved(tmp_path / "a.png")]
    with caplog.at_level(logging.WARNING):
        assert check(files, skip_bad=True) == (files[0], files[2])
    assert "1 of 3 image files" in caplog.text and "left out" in caplog.text


def test_a_file_of_two_groups_is_decoded_once(tmp_path, monkeypatch):
    files = [saved(tmp_path / f"{i}.png") for i in range(9)]
    read, measure = [], validation._measure
    monkeypatch.setattr(validation, "_measure", lambda *args: read.append(args) or measure(*args))
    groups = {"train_a": (files, ANY), "test_a": (files[:1], ANY)}
    validate_all(groups, workers=1, skip_bad=False)
    assert len(read) == 9


def test_dali_that_is_missing_cannot_be_forced(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    rule = SizeRule(None, None, image_io.Reading(loader="dali"))
    with pytest.raises(DataError, match=r"data.loader=dali needs .*pip install .*\[train\]"):
        check([saved(tmp_path / "x.png")], rule)
