"""Framing digits, deforming them, and taking them in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastunit.digits.images import Stream, deform, normalised, prepare


def rectangle(top, left, height, width, size=(28, 28)) -> torch.Tensor:
    image = torch.zeros(1, 1, *size, dtype=torch.uint8)
    image[..., top : top + height, left : left + width] = 255
    return image


@pytest.mark.parametrize(
    ("image", "height", "width"),
    [
        (rectangle(4, 4, 20, 10), 24, 12),
        (rectangle(0, 3, 5, 20), 6, 24),
        (rectangle(0, 0, 16, 16, (16, 16)), 24, 24),
        (rectangle(2, 9, 12, 4, (16, 16)), 24, 8),
        (rectangle(1, 3, 8, 6, (16, 32)), 24, 18),
    ],
)
def test_a_digits_box_is_centred_at_24_pixels(image, height, width):
    ink = prepare(image, "box")[0, 0] >= 128
    rows, columns = ink.any(1).nonzero()[:, 0], ink.any(0).nonzero()[:, 0]
    assert (rows[0].item(), rows[-1].item()) == (16 - height // 2, 15 + height // 2)
    assert (columns[0].item(), columns[-1].item()) == (16 - width // 2, 15 + width // 2)


def test_faint_ink_is_no_digit_and_an_empty_image_stays_whole():
    image = rectangle(4, 4, 20, 10)
    faint = image.clone()
    faint[..., 0, 0] = 63
    assert torch.equal(
        prepare(faint, "box")[..., 4:28, 4:28], prepare(image, "box")[..., 4:28, 4:28]
    )
    dim = torch.full((1, 1, 16, 16), 63, dtype=torch.uint8)
    assert torch.equal(prepare(dim, "box"), prepare(dim, "frame"))
    assert prepare(dim, "frame").unique().tolist()[-1] == 63


def test_a_frame_is_resized_as_pytorch_does():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 28, 28), np.uint8))
    expected = F.interpolate(images.float(), (32, 32), mode="bilinear", align_corners=False)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # edges fade to black
    error = (prepare(images, "frame").float() - expected.round())[inside].abs().max()
    assert error <= 1
    large = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert prepare(large, "frame") is large
    with pytest.raises(ValueError, match="geometry='crop'"):
        prepare(large, "crop")


STILL = {"rotation": 0, "stretch": 0, "shear": 0, "shift": 0}


def test_deformation():
    generator = torch.Generator().manual_seed(0)
    images = normalised(prepare(rectangle(4, 10, 20, 8), "box")).expand(200, -1, -1, -1)
    assert deform(images, **STILL, generator=generator) is images
    ink = (images[:1] + 1).sum().item()
    for name, amount in (("rotation", 20), ("shear", 0.3), ("shift", 2)):
        moved = deform(images, **(STILL | {name: amount}), generator=generator)
        areas = (moved + 1).sum((1, 2, 3)) / ink  # all three keep areas
        assert areas.min() > 0.93 and areas.max() < 1.07, name
        assert not torch.equal(moved[0], moved[1]), name
    areas = (deform(images, **(STILL | {"stretch": 0.2}), generator=generator) + 1).sum((1, 2, 3))
    assert 1.2 < (areas / ink).max() < math.exp(0.4) * 1.05
    centres = deform(images, **(STILL | {"shift": 2}), generator=generator) + 1
    rows = (centres.sum((1, 3)) * torch.arange(32)).sum(1) / centres.sum((1, 2, 3)) - 15.5
    assert 1.5 < rows.max() <= 2.01 and -2.01 <= rows.min() < -1.5


def indices(stream: Stream, batches: int) -> list[int]:
    return torch.cat([next(stream)[1] for _ in range(batches)]).tolist()


def test_a_stream_takes_every_image_once_in_turn():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(-1, 1, 32, 32)
    x, index = next(Stream(images, 4, seed=3, **STILL))
    assert torch.equal(x, normalised(images[index]))
    drawn = indices(Stream(images, 4, seed=1, **STILL), 5)
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert drawn[:10] != drawn[10:] and drawn != indices(Stream(images, 4, seed=2, **STILL), 5)
    assert sorted(indices(Stream(images[:2], 4, seed=0, **STILL), 1)) == [0, 0, 1, 1]


def test_a_stream_goes_on_where_it_stood():
    images = torch.randint(0, 256, (10, 1, 32, 32), dtype=torch.uint8)
    first, other = (Stream(images, 4, seed, **STILL | {"rotation": 9}) for seed in (1, 2))
    for _ in range(3):
        next(first)
    state = first.state_dict()
    rest = [next(first) for _ in range(4)]
    other.load_state_dict(state)
    for x, index in rest:
        again, same = next(other)
        assert torch.equal(x, again) and torch.equal(index, same)
    with pytest.raises(ValueError, match="9 images instead of 10"):
        Stream(images[:9], 4, 1, **STILL).load_state_dict(state)


def test_padding_gives_usps_the_margin_of_mnist():
    """16x16 to 20x20, centred in 28x28, then to 32x32, against NumPy."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (16, 16)).astype(np.uint8)

    def resized(values: np.ndarray, size: int) -> np.ndarray:
        """Bilinear, from the centres of pixels; the edge repeats."""
        place = (np.arange(size) + 0.5) * len(values) / size - 0.5
        low = np.floor(place).astype(int)
        share = (place - low)[:, None]
        rows = (
            values[low.clip(0)] * (1 - share) + values[(low + 1).clip(max=len(values) - 1)] * share
        )
        return rows

    twenty = resized(resized(image.astype(float), 20).T, 20).T
    framed = np.zeros((28, 28))
    framed[4:24, 4:24] = twenty
    expected = resized(resized(framed, 32).T, 32).T
    mine = prepare(torch.from_numpy(image)[None, None], "pad")[0, 0].numpy()
    assert mine.shape == (32, 32) and mine.dtype == np.uint8
    assert np.abs(mine - expected).max() <= 0.51  # rounded once, at the end
    assert not mine[:4].any() and not mine[:, :4].any()
    assert not mine[28:].any() and not mine[:, 28:].any()


def test_padding_leaves_mnists_own_margin_and_keeps_every_shape():
    rng = np.random.default_rng(4)
    own = torch.from_numpy(rng.integers(0, 256, (5, 1, 28, 28)).astype(np.uint8))
    assert torch.equal(prepare(own, "pad"), prepare(own, "frame"))
    for size, (height, width) in {
        (16, 16): (20, 20), (20, 20): (20, 20), (40, 40): (20, 20), (16, 8): (20, 10),
        (7, 28): (5, 20), (64, 32): (20, 10),
    }.items():  # fmt: skip
        ink = prepare(torch.full((1, 3, *size), 255, dtype=torch.uint8), "pad")
        assert ink.shape == (1, 3, 32, 32)
        area = ink[0, 0].double().sum().item() / 255
        assert area == pytest.approx(height * width * (32 / 28) ** 2, rel=0.02), size
        rows, columns = ink[0, 0].sum(1).nonzero(), ink[0, 0].sum(0).nonzero()
        for found in (rows, columns):  # centred, to the pixel that an odd margin leaves
            assert abs(found[0].item() + found[-1].item() - 31) <= 1, size
    assert prepare(torch.full((2, 1, 16, 16), 255, dtype=torch.uint8), "pad")[1].max() == 255
