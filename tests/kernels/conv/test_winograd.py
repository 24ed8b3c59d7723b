"""3x3 convolutions on a CPU in fewer products: numbers, and when they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastunit.kernels import conv_norm_act, upsample_conv
from fastunit.kernels.conv import aten, winograd

LAST = torch.channels_last
CONVOLUTIONS = [
    {"padding": 1, "pad_mode": "reflect"},
    {"padding": 1},
    {"padding": 2, "pad_mode": "replicate"},
    {"padding": 2},
    {},
]
BLOCKS = [
    *[(conv_norm_act, 3, options) for options in CONVOLUTIONS],
    (upsample_conv, 5, {"padding": 2}),
    (upsample_conv, 5, {"padding": 2, "pad_mode": "reflect"}),
]
# What makes Winograd's form the wrong choice: options, and shapes of image and filters.
WRONG = {
    "stride": ({"stride": 2, "padding": 1}, (2, 128, 32, 32), (256, 128, 3, 3)),
    "an odd size": ({"padding": 1}, (2, 128, 32, 31), (256, 128, 3, 3)),
    "filters of 5x5": ({"padding": 2}, (2, 128, 32, 32), (256, 128, 5, 5)),
    "few pixels": ({"padding": 1}, (1, 128, 16, 16), (512, 128, 3, 3)),
    "few channels": ({"padding": 1}, (2, 64, 32, 32), (512, 64, 3, 3)),
    "few results": ({"padding": 1}, (2, 512, 32, 32), (64, 512, 3, 3)),
}


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """One entry for each image, or gradient of one, that was made in Winograd's form."""
    found, own = [], winograd._multiply

    def counted(x: Tensor, *more: object) -> None:
        found.append(len(x))
        own(x, *more)

    monkeypatch.setattr(winograd, "_multiply", counted)
    return found


def run(op, x: Tensor, w: Tensor, b: Tensor, options: dict) -> list[Tensor]:
    """Return the result and the gradients of image, filters and bias."""
    tensors = [value.detach().clone().requires_grad_() for value in (x, w, b)]
    y = op(*tensors, **options)
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape).sin()
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


def draw(x_shape, w_shape, groups: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(x_shape))
    x = torch.randn(x_shape, generator=generator, dtype=dtype).contiguous(memory_format=LAST)
    scale = w_shape[1:].numel() ** -0.5
    w = scale * torch.randn((groups, *w_shape), generator=generator, dtype=dtype)
    b = torch.randn(groups, w_shape[0], generator=generator, dtype=dtype)
    if groups == 1:
        return [x, w[0].contiguous(memory_format=LAST), b[0]]
    return [x, w, b]


@pytest.mark.parametrize("part", [1, 40, 1 << 17])  # windows times channels: rows, images, all
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("op", "taps", "options"), BLOCKS)
def test_numbers_are_those_of_the_direct_form(op, taps, options, groups, part, monkeypatch):
    tensors = draw((4, 3, 10, 14), torch.Size((5, 3, taps, taps)), groups, torch.float64)
    wanted = run(op, *tensors, options)
    monkeypatch.setattr(winograd, "CACHED", part)
    monkeypatch.setattr(aten, "pays", lambda *_: True)
    for mine, other in zip(run(op, *tensors, options), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
        assert mine.dim() != 4 or mine.stride() == other.stride()


@pytest.mark.parametrize(("op", "taps", "options"), BLOCKS)
def test_float32_is_as_accurate_as_onednn(op, taps, options, products, monkeypatch):
    k = 64 if op is upsample_conv else 256
    shape = torch.Size((k, 128, taps, taps))
    tensors = draw((2, 128, 32, 22), shape)
    mine = run(op, *tensors, options)
    assert products == [2, 2]
    monkeypatch.setattr(aten, "pays", lambda *_: False)
    direct = run(op, *tensors, options)
    wanted = run(op, *[value.double() for value in tensors], options)
    # Its sums are longer than ours, except those of the filters' gradient.
    for found, other, right, times in zip(mine, direct, wanted, (1.1, 1, 2.5, 1.1), strict=True):
        assert error(found, right) <= times * error(other, right)


def error(found: Tensor, right: Tensor) -> float:
    return (found.double() - right).square().mean().sqrt().item()


@pytest.mark.parametrize("case", WRONG)
def test_other_convolutions_stay_direct(case, products):
    options, x_shape, w_shape = WRONG[case]
    run(conv_norm_act, *draw(x_shape, torch.Size(w_shape)), options)
    assert not products


def test_other_types_formats_and_precisions_stay_direct(products):
    x, w, b = draw((2, 128, 32, 32), torch.Size((256, 128, 3, 3)))
    with torch.no_grad():
        conv_norm_act(x.double(), w.double(), b.double(), padding=1)
        conv_norm_act(x.contiguous(), w.contiguous(), b, padding=1)
        with torch.autocast("cpu", torch.bfloat16):
            conv_norm_act(x, w, b, padding=1)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            conv_norm_act(x, w, b, padding=1)
        finally:
            torch.set_float32_matmul_precision(before)
        assert not products
        conv_norm_act(x, w, b, padding=1)
        assert products == [2]


@pytest.mark.parametrize("size", [(4, 400), (400, 4), (40, 40)])
def test_the_memory_between_does_not_grow_with_the_image(size, monkeypatch):
    sizes, own = {}, winograd._Memory.take

    def noted(self, name: str, shape: tuple[int, ...]) -> Tensor:
        sizes[name] = max(sizes.get(name, 0), torch.Size(shape).numel())
        return own(self, name, shape)

    monkeypatch.setattr(winograd._Memory, "take", noted)
    monkeypatch.setattr(winograd, "CACHED", 160)
    monkeypatch.setattr(aten, "pays", lambda *_: True)
    run(conv_norm_act, *draw((1, 4, *size), torch.Size((4, 4, 3, 3))), {"padding": 1})
    assert sizes.pop("filters") == 16 * 4 * 4
    # 20 windows at a time, 16 values each; of rows those that neighbours share are there once.
    assert sizes == {"windows": 16 * 20 * 4, "products": 16 * 20 * 4, "rows": sizes["rows"]}
    assert 2 * 20 * 4 * 4 < sizes["rows"] <= 16 * 20 * 4


def test_values_that_are_not_finite_reach_the_windows_they_are_in():
    x, w, b = draw((1, 128, 32, 32), torch.Size((256, 128, 3, 3)))
    x[0, 5, 10, 20] = float("nan")
    with torch.no_grad():
        y = conv_norm_act(x, w, b, padding=1)
    found = y.isnan().any(1)[0].nonzero()
    assert found.min(0).values.tolist() == [9, 19] and found.max(0).values.tolist() == [11, 21]


def test_a_frozen_layer_makes_no_gradients(products):
    x, w, b = draw((2, 128, 32, 32), torch.Size((256, 128, 3, 3)))
    y = conv_norm_act(x.requires_grad_(), w, b, padding=1)
    y.sum().backward()
    assert x.grad is not None and products == [2, 2] and w.grad is None
