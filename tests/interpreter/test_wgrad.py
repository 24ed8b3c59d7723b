"""The gradient of filters, written or added in the parameter's own layout, against float64."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.conv import gemm, tiles
from fastunit.kernels.conv.phases import combined_filters_backward

SHAPES = {  # G, K, C, R, S of the filters; rows and columns of the gradient; stride
    "3x3": ((1, 6, 5, 3, 3), (9, 7), 1),
    "two domains, stride 2": ((2, 9, 4, 4, 4), (5, 6), 2),
    "oblong": ((1, 3, 12, 2, 3), (4, 20), 1),
    "wider than a tile": ((2, 70, 36, 1, 1), (6, 6), 1),
}
FORMATS = {
    "contiguous": lambda dw: dw.contiguous(),
    "channels_last": lambda dw: dw.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
}


def frames(shape, extent, stride):
    """Return windows' image and gradient in frames, whose unused channels are zero."""
    g, k, c, r, s = shape
    pad = -(-r // stride) - 1, -(-s // stride) - 1
    rows, columns = extent[0] + pad[0], extent[1] + pad[1]
    x = torch.zeros(2 * g, stride * rows, stride * columns, -(-c // 8) * 8)
    x[..., :c] = torch.randn(*x.shape[:3], c)
    dy = torch.zeros(2 * g, rows, columns, -(-k // 8) * 8)
    dy[:, : extent[0], : extent[1], :k] = torch.randn(2 * g, *extent, k)
    return x, dy


def correlated(x, dy, shape, extent, stride):
    """Return the gradient [G, K, C, R, S] in float64."""
    g, k, c, r, s = shape
    windows = x.double()[..., :c].unfold(1, r, stride).unfold(2, s, stride)
    windows = windows[:, : extent[0], : extent[1]].unflatten(0, (g, -1))
    of = dy.double()[:, : extent[0], : extent[1], :k].unflatten(0, (g, -1))
    return torch.einsum("gnpqcrs,gnpqk->gkcrs", windows, of)


@pytest.fixture(params=[False, True], ids=["one split", "many splits"])
def splits(request, monkeypatch):
    """Take as many splits as there can be, or what the cost function says."""
    choose = tiles.for_filters

    def most(*args):
        tile, _ = choose(*args)
        return tile, tile.block_k

    if request.param:
        monkeypatch.setattr(tiles, "for_filters", most)


@pytest.mark.parametrize("combined", [False, True])
def test_upsampling_s_gradient_of_combined_filters(combined, splits):
    shape, extent = (2, 6, 5, 3, 3), (9, 17)
    x, dy = frames(shape, extent, 2)
    exact = correlated(x, dy, shape, extent, 2)
    dw = torch.full((2, 6, 5, 2, 2) if combined else shape, float("nan"))
    if combined:  # which have the channels of w the other way round
        exact = combined_filters_backward(exact).transpose(1, 2)
    gemm.wgrad(x, dy, dw, extent, 2, combined=combined)
    torch.testing.assert_close(dw.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_correlation(name, form, flipped, splits):
    shape, extent, stride = SHAPES[name]
    x, dy = frames(shape, extent, stride)
    exact = correlated(x, dy, shape, extent, stride)
    exact = exact.flip(3, 4) if flipped else exact
    dw = FORMATS[form](torch.full(shape, float("nan")))
    for add in (False, True):
        gemm.wgrad(x, dy, dw, extent, stride, flipped=flipped, add=add)
        torch.testing.assert_close(dw.double(), exact * (1 + add), rtol=1e-5, atol=1e-5)
    half = torch.empty_like(dw, dtype=torch.bfloat16)
    gemm.wgrad(x, dy, half, extent, stride, flipped=flipped)
    torch.testing.assert_close(half.double(), exact, rtol=2**-7, atol=1e-4)
