"""The DALI pipelines' pixels against Pillow and torch: decoding, colours, orientation, resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastunit.data.pipeline import DomainLoader, iter_images
from fastunit.data.validation import SizeRule

pytest.importorskip("nvidia.dali", reason="images are read with NVIDIA DALI")
CPU = torch.device("cpu")


def whole(files, channels=3, new_size=None) -> list[torch.Tensor]:
    """Every image in full, as bytes: uint8-valued float [C, H, W]."""
    images = iter_images(
        files, channels=channels, batch_size=4, crop=None, new_size=new_size, device=CPU
    )
    return [(image[0] + 1) * 127.5 for image in images]


def waves(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    planes = [127.5 + 127 * np.sin(x / 5 + k) * np.cos(y / 3 - k) for k in range(3)]
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


def chw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()


@pytest.mark.parametrize(("size", "new_size"), [((90, 60), 30), ((50, 77), 32), ((40, 30), 64)])
def test_resize_agrees_with_antialiased_bilinear(tmp_path, size, new_size):
    """Rounding apart the resize is exact, but for the outermost lines when shrinking."""
    image = waves(*size)
    image.save(tmp_path / "x.png")
    (ours,) = whole([tmp_path / "x.png"], new_size=new_size)
    height, width = SizeRule(new_size, None).resized(size[1], size[0])
    assert ours.shape == (3, height, width)
    pillow = chw(image.resize((width, height), Image.Resampling.BILINEAR))
    exact = torch.nn.functional.interpolate(
        chw(image)[None], (height, width), mode="bilinear", antialias=True
    )[0]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert (ours - exact)[inner].abs().max() < 0.51
    assert (ours - pillow)[inner].abs().max() < 1.01
    assert (ours - exact).abs().max() < (8 if new_size < min(size) else 0.51)


def test_resize_of_a_photograph(shared):
    """The tolerances that fastunit/data/pipeline.py states, at the strongest shrinking it names."""
    file = sorted((shared / "data/day2night_amos/trainA").iterdir())[0]
    image = chw(Image.open(file))[None]
    (ours,) = whole([file], new_size=32)
    size = tuple(ours.shape[1:])
    exact = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)[0]
    error = (ours - exact).abs()
    assert error[:, 1:-1, 1:-1].max() < 0.51
    assert error.max() < 16 and error.mean() < 0.4


def test_resized_sizes_are_dalis(tmp_path):
    sizes = [(105, 6), (6, 105), (102, 12), (21, 6), (7, 7), (13, 40)]
    files = [tmp_path / f"{i}.png" for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        Image.new("RGB", size).save(file)
    for new_size in (5, 7, 64):
        rule = SizeRule(new_size, None)
        for (width, height), image in zip(sizes, whole(files, new_size=new_size), strict=True):
            assert tuple(image.shape[1:]) == rule.resized(height, width)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tiff", "webp"])
def test_formats_decode_as_pillow_does(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    waves(33, 21).save(file)
    assert (whole([file])[0] - chw(Image.open(file))).abs().max() < 1.01


def test_alpha_is_dropped_not_blended(tmp_path):
    image = waves(24, 20)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "x.png")
    assert torch.allclose(whole([tmp_path / "x.png"])[0], chw(image), atol=1e-4)


def test_one_channel_is_luminance_and_three_of_gray_are_equal(tmp_path):
    colour, gray = tmp_path / "colour.png", tmp_path / "gray.png"
    waves(24, 20).save(colour)
    waves(24, 20).convert("L").save(gray)
    luminance = chw(waves(24, 20).convert("L"))
    (one,) = whole([colour], channels=1)
    assert one.shape == (1, 20, 24) and (one - luminance[:1]).abs().max() < 1.01
    (three,) = whole([gray])
    assert torch.allclose(three, luminance, atol=1e-4)
    options = dict(channels=1, batch_size=4, crop=(8, 8), new_size=None, seed=0, stream=0)
    batch = next(DomainLoader([colour], device=CPU, **options))
    assert batch.shape == (4, 1, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    waves(32, 24).save(tmp_path / "x.jpg", exif=exif)
    upright = chw(ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg")))
    assert (whole([tmp_path / "x.jpg"])[0] - upright).abs().max() < 1.01
