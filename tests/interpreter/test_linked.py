"""Blocks that hand images on in frames, against the same blocks one by one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels.conv import launch, layouts
from fastunit.kernels.conv.block import apply
from fastunit.kernels.conv.geometry import convolution
from fastunit.kernels.conv.linked import Next, Padded
from fastunit.kernels.conv.plan import Plan

TOLERANCE = 2e-5  # of the largest value; fp32 sums of up to a hundred terms, twelve layers deep


def plan(kind="conv", stride=1, padding=1, mode="reflect", norm="in", act="relu"):
    return Plan(kind, stride, padding, 0, mode, norm, 1e-5, act, 0.2, 0, "zero", "auto")


def res(mode):
    return plan(mode=mode), plan(mode=mode, act="none")


def generator(mode, groups):
    """Yield blocks as (plan, filters, gamma and beta): an encoder's and a decoder's."""
    first, second = res(mode)
    return [
        (plan(padding=3, mode=mode), (4, 3, 7, 7)),
        (plan(stride=2, mode=mode), (8, 4, 4, 4)),
        (first, (8, 8, 3, 3)),
        (second, (8, 8, 3, 3)),
        (first, (8, 8, 3, 3)),
        (second, (8, 8, 3, 3)),
        (plan("upsample", padding=2, mode=mode, norm="ln"), (4, 8, 5, 5)),
        (plan(padding=3, mode=mode, norm="none", act="tanh"), (3, 4, 7, 7)),
    ], groups


def discriminator(mode, groups):
    down = plan(stride=2, mode=mode, norm="none", act="lrelu")
    return [
        (down, (4, 3, 4, 4)),
        (down, (8, 4, 4, 4)),
        (plan(padding=0, norm="none", act="none"), (1, 8, 1, 1)),
    ], groups


def without_norms(mode, groups):
    """Yield blocks whose images have odd sizes and channels; two products write no frames."""
    bare = {"mode": mode, "norm": "none"}
    return [
        (plan(stride=2, act="lrelu", **bare), (5, 3, 4, 4)),
        (plan(stride=2, act="selu", **bare), (12, 5, 4, 4)),
        (plan(**bare), (9, 12, 3, 3)),
        (plan("upsample", padding=2, **bare), (3, 9, 5, 5)),
        (plan(padding=3, act="tanh", **bare), (4, 3, 7, 7)),
        (plan(act="none", **bare), (6, 4, 3, 3)),
    ], groups


def parameters(blocks, groups, requires_grad=True):
    torch.manual_seed(0)
    found = []
    for each, shape in blocks:
        count = each.channels_out(shape)
        w = torch.randn(groups, *shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        b = torch.randn(groups, count)
        affine = (torch.rand(groups, count), torch.randn(groups, count))
        affine = affine if each.norm == "ln" else (None, None)
        found.append([w, b, *affine])
    for tensor in (t for tensors in found for t in tensors if t is not None):
        tensor.requires_grad_(requires_grad)
    return found


def run(blocks, weights, x, *, impl, linked):
    """Run the blocks in order; a block without activation after a norm adds its pair's input."""
    types, inputs = [], []
    for index, ((each, _), tensors) in enumerate(zip(blocks, weights, strict=True)):
        later = blocks[index + 1 :]
        follow = Next(*later[0]) if linked and later else None
        residual = inputs[-1] if each.norm == "in" and each.act == "none" else None
        if isinstance(residual, Padded):
            residual = residual.image
        inputs.append(x)
        x = apply(each._replace(impl=impl), x, *tensors, None, residual, follow=follow)
        types.append(type(x))
    return x, types


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize("network", [generator, discriminator, without_norms])
def test_a_network_in_frames(network, mode, groups):
    blocks, groups = network(mode, groups)
    weights = parameters(blocks, groups)
    size = (18, 14) if network is without_norms else (16, 12)
    x = torch.randn(2, 3, *size, requires_grad=True)
    y, types = run(blocks, weights, x, impl="triton", linked=True)
    assert all(found is Padded for found in types[:-1]) and types[-1] is torch.Tensor
    exact = [
        [t if t is None else t.detach().double().requires_grad_() for t in ts] for ts in weights
    ]
    x64 = x.detach().double().requires_grad_()
    wanted, _ = run(blocks, exact, x64, impl="aten", linked=False)
    assert_near(y, wanted, "y")
    dy = torch.randn(y.shape)
    y.backward(dy)
    wanted.backward(dy.double())
    assert_near(x.grad, x64.grad, "dx")
    for index, (mine, theirs) in enumerate(zip(weights, exact, strict=True)):
        for name, value, other in zip(["w", "b", "gamma", "beta"], mine, theirs, strict=True):
            if value is not None:
                assert_near(value.grad, other.grad, f"d{name} of block {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize(
    ("kind", "stride", "padding", "taps"),
    [("conv", 2, 1, 4), ("conv", 1, 3, 7), ("conv", 1, 0, 1), ("upsample", 1, 2, 5),
     ("transpose", 2, 1, 3)],
)  # fmt: skip
def test_a_product_writes_the_frame_of_its_reader(
    kind, stride, padding, taps, mode, dtype, monkeypatch
):
    """In its own launch, with the halo and the zeros around it; [12, 15] pixels of 20 channels."""
    own = plan(stride=2, norm="none", act="lrelu")._replace(impl="triton")
    x = torch.randn(4, 12, 25, 31).to(dtype)
    w, b = (torch.randn(2, 20, 12, 4, 4) / 14).to(dtype), torch.randn(2, 20)
    conv = convolution(own, x.shape, w.shape[-4:])
    reads = plan(kind, stride, padding, "zero" if kind == "transpose" else mode)
    reader = convolution(reads, (4, 20, *conv.out), (20, 20, taps, taps))
    buffer = launch._haloed(x, conv)
    filters = layouts.layouts("conv", 2, w.shape)[0].make(w, dtype)
    monkeypatch.setattr(launch, "norm_act_triton", None)
    y, *_ = launch.fprop(own, x, w, b, None, None, None, None, filters, buffer, reader)

    exact = own._replace(impl="aten"), *(tensor.double() for tensor in (x, w, b))
    image, halo, before = apply(*exact), reader.halo, reader.x_frame.lead - reader.halo
    pad_mode = "constant" if reader.pad_mode == "zero" else reader.pad_mode
    haloed = F.pad(image, (halo,) * 4, pad_mode).permute(0, 2, 3, 1)
    wanted = torch.zeros(y.shape, dtype=torch.float64)
    rows, columns, channels = haloed.shape[1:]
    wanted[:, before : before + rows, before : before + columns, :channels] = haloed
    assert y.dtype == dtype and y.shape[1:] == (reader.x_frame.height, reader.x_frame.width, 24)
    assert (y[wanted == 0] == 0).all()
    # The interpreter truncates to bfloat16, which doubles an error.
    relative = 2**-7 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(y.double(), wanted, rtol=relative, atol=TOLERANCE * 4)


def assert_near(mine, wanted, name):
    scale = wanted.abs().max().item()
    assert mine.shape == wanted.shape, name
    assert (mine.double() - wanted).abs().max() <= TOLERANCE * scale + 1e-30, name
