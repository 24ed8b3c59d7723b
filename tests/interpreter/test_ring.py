"""The border correction's kernels against their ATen twin in float64, and against eager PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import upsample_conv
from fastunit.kernels.common.frame import channels_last
from fastunit.kernels.conv import phases
from fastunit.kernels.conv.ring import Ring

SIZES = {
    # N, C, K, groups, taps, H, W
    "two pixels": (1, 3, 2, 1, 5, 2, 2),
    "two rows": (2, 4, 20, 2, 5, 2, 5),
    "two columns": (3, 9, 3, 1, 5, 3, 2),
    "three pixels": (1, 8, 8, 1, 5, 3, 3),
    "two domains": (4, 20, 12, 2, 5, 6, 4),
    "many tiles": (1, 70, 40, 1, 5, 5, 40),
    "other filters": (2, 5, 6, 1, 3, 4, 6),
    "one tap": (2, 5, 6, 1, 1, 4, 3),
}
# Roundings of a difference, and of the sums' operands, in bfloat16; the interpreter truncates.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


def make(name, dtype):
    n, c, k, groups, taps, *size = SIZES[name]
    out = tuple(2 * length + 5 - taps for length in size)
    x, w = torch.randn(n, *size, c).to(dtype), torch.randn(groups, k, c, taps, taps).to(dtype)
    return Ring(tuple(size), out, w), x, w, out


def close(found, exact, dtype):
    assert found.shape == exact.shape
    assert (found.double() - exact).abs().max() <= ROUNDING[dtype] * exact.abs().max()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_added_along_the_border(name, dtype):
    ring, x, w, (rows, columns) = make(name, dtype)
    sides = ring.fprop(x, w)
    assert sides.dtype == torch.float32
    found = torch.zeros(len(x), rows, columns, w.shape[1])
    found[:, 0] += sides[0, :, :columns]
    found[:, -1] += sides[1, :, :columns]
    found[:, :, 0] += sides[2, :, :rows]
    found[:, :, -1] += sides[3, :, :rows]
    exact = torch.zeros(len(x), w.shape[1], rows, columns, dtype=torch.float64)
    values = phases.border_correction(channels_last(x).double(), w.double())
    phases.add_border_correction(exact, values)
    close(channels_last(found), exact, dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_added_to_the_gradients(name, dtype):
    ring, x, w, out = make(name, dtype)
    dy = torch.randn(len(x), *out, w.shape[1]).to(dtype)
    dx, dw = torch.zeros(x.shape, dtype=dtype), torch.zeros(w.shape)
    ring.backward(dy, x, w, dx, dw)
    exact = [torch.zeros(t.shape, dtype=torch.float64) for t in (channels_last(x), w)]
    wide = (channels_last(t).double() for t in (dy, x))
    phases.add_border_correction_backward(*wide, w.double(), *exact)
    close(channels_last(dx), exact[0], dtype)
    close(dw, exact[1], dtype)

    once = dx.clone(), dw.clone()
    ring.backward(dy, x, w, dx, dw)  # adds, and adds the same again
    close(dx, 2 * once[0].double(), dtype)
    close(dw, 2 * once[1].double(), dtype)


def test_views_of_a_frame_and_filters_of_any_strides():
    ring, x, w, out = make("two domains", torch.float32)
    frame = torch.randn(4, 9, 8, 24)
    view = frame[:, 2:8, 1:5, :20].copy_(x)
    turned = w.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)
    assert torch.equal(ring.fprop(view, turned), ring.fprop(x, w))
    dy = torch.randn(4, *out, 12)
    wanted, found = ([torch.zeros(x.shape), torch.zeros(w.shape)] for _ in range(2))
    found[1] = torch.zeros_like(turned)
    ring.backward(dy, x, w, *wanted)
    ring.backward(torch.randn(4, 20, 16, 16)[:, 3:15, 5:13, :12].copy_(dy), view, turned, *found)
    assert all(map(torch.equal, wanted, found))


@pytest.mark.parametrize("name", ["x", "w"])
def test_only_one_gradient_is_wanted(name):
    ring, x, w, out = make("two domains", torch.float32)
    dy, dx, dw = torch.randn(4, *out, 12), torch.zeros(x.shape), torch.zeros(w.shape)
    ring.backward(dy, x, w, dx, dw)
    alone = torch.zeros(x.shape if name == "x" else w.shape)
    ring.backward(dy, x, w, *((alone, None) if name == "x" else (None, alone)))
    assert torch.equal(alone, dx if name == "x" else dw)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    # As rounding the sums of neighbouring taps makes it; the interpreter truncates to bfloat16
    # where a GPU rounds, which doubles an error.
    [(torch.float16, 1.5), (torch.bfloat16, 3)],
    ids=str,
)
def test_a_reflected_border_is_as_exact_as_eager_pytorch_s(dtype, factor):
    """With float32 filters, as a training step has them; root mean square of the border."""
    x, w = torch.randn(2, 48, 6, 7).to(dtype), torch.randn(24, 48, 5, 5) / 35
    dy = torch.randn(2, 24, 12, 14).to(dtype)

    def eager(x, w):
        return F.conv2d(F.pad(F.interpolate(x, scale_factor=2), (2,) * 4, mode="reflect"), w)

    def errors(op, x, w, exact=None):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = op(x, w)
        dx, dw = torch.autograd.grad(y, (x, w), dy.to(y.dtype))
        found = y.detach().double(), dx.double(), dw.double()
        for image, lines in zip(found, (1, 2), strict=False):
            image[:, :, lines:-lines, lines:-lines] = 0
        if exact is None:
            return found
        return [(a - b).pow(2).mean().sqrt() for a, b in zip(found, exact, strict=True)]

    exact = errors(eager, x.double(), w.double())
    theirs = errors(lambda x, w: eager(x, w.to(dtype)), x, w, exact)
    mine = errors(
        lambda x, w: upsample_conv(x, w, padding=2, pad_mode="reflect", impl="triton"), x, w, exact
    )
    assert all(mine[i] <= factor * theirs[i] for i in range(3)), (mine, theirs)
