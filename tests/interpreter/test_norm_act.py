"""The kernels of norm_act against its ATen twin in float64."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.common.frame import Frame, channels_last
from fastunit.kernels.norm_act.merges import merge_statistics
from fastunit.kernels.norm_act.op import (
    NormActOptions,
    norm_act,
    norm_act_aten,
    norm_act_backward_aten,
    norm_act_backward_triton,
    norm_act_triton,
)

NORMS = ("none", "in", "ln")
HALOS = ((0, "zero"), (1, "zero"), (2, "reflect"), (2, "replicate"))
TOLERANCE = 1e-5


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)


def double(*tensors):
    return [None if t is None else t.double() for t in tensors]


def assert_near(mine, wanted, name, tolerance=TOLERANCE):
    assert (mine is None) == (wanted is None), name
    if wanted is not None and wanted.numel():
        assert mine.shape == wanted.shape, name
        scale = max(1.0, wanted.abs().max().item())
        assert (mine.double() - wanted.double()).abs().max() <= tolerance * scale, name


def assert_in_frame(buffer, frame, wanted, lead, name):
    """Compare what is inside the frame; everything else in it must be zero."""
    (_, channels, height, width), image = wanted.shape, channels_last(buffer).clone()
    assert buffer.shape[1:] == (frame.height, frame.width, frame.pitch)
    inside = image[:, :channels, lead : lead + height, lead : lead + width]
    assert_near(inside, wanted, name)
    inside.zero_()
    assert torch.equal(image, torch.zeros_like(image)), name
    start = buffer.storage_offset()
    assert start == frame.slack * frame.pitch
    before = buffer.as_strided((start,), (1,), 0)
    assert torch.equal(before, torch.zeros_like(before)), name


def check(shape, tail, *, rows=1, slope=None, frames=True, dtype=torch.float32, slack=3):
    """Compare forward and backward of a tail, in frames wider than the image."""
    samples, channels, height, width = shape
    x, residual = (torch.randn(shape, dtype=dtype) for _ in range(2))
    x = x * 3 + 1
    gamma, beta = torch.randn(rows, channels), torch.randn(channels)
    halo, size = tail.halo, (height + 2 * tail.halo, width + 2 * tail.halo)
    pitch = -(-channels // 8) * 8
    frame = Frame(halo, size[0] + 1, size[1] + 2, pitch) if frames else None
    y, mean, rstd = norm_act_triton(nhwc(x), gamma, beta, slope, nhwc(residual), tail, frame=frame)
    exact = double(x, gamma, beta, slope)
    wanted, *statistics = norm_act_aten(*exact, residual.double(), tail)
    frame = frame or Frame(halo, *size, channels)
    assert_in_frame(y, frame, wanted, 0, "y")
    assert_near(mean, statistics[0], "mean")
    assert_near(rstd, statistics[1], "rstd")

    # A view into a wider buffer, as a convolution's data gradient leaves it.
    dy = torch.randn(samples, size[0] + 1, size[1] + 3, pitch, dtype=dtype)
    dy = dy[:, 1:, 1 : size[1] + 1, :channels]
    frame = Frame(1, height + 2, width + 3, pitch, slack) if frames else None
    more = torch.randn(samples, height, width + 1, pitch, dtype=dtype)[:, :, 1:, :channels]
    found = norm_act_backward_triton(
        dy, nhwc(x), mean, rstd, gamma, beta, slope, tail, frame=frame, residual=True, more=more
    )
    x, *parameters = exact
    both = channels_last(dy).double().clone()
    both[:, :, halo : halo + height, halo : halo + width] += channels_last(more)
    wanted = norm_act_backward_aten(both, x, *statistics, *parameters, tail, residual=True)
    if not halo:  # ours is the sum, not dy
        wanted = wanted._replace(dresidual=both)
    lead, frame = (1, frame) if frame else (0, Frame(0, height, width, channels))
    assert_in_frame(found.dx, frame, wanted.dx, lead, "dx")
    for name in ("dgamma", "dbeta", "dslope", "dshift"):
        assert_near(getattr(found, name), getattr(wanted, name), name)
    folded = None if found.dresidual is None else channels_last(found.dresidual)
    assert_near(folded, wanted.dresidual, "dresidual")


@pytest.mark.parametrize(("halo", "pad_mode"), HALOS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ["none", "relu", "prelu"])
def test_every_norm_and_halo(norm, act, halo, pad_mode):
    slope = torch.rand(4) if act == "prelu" else None
    check((2, 4, 5, 7), NormActOptions(norm, 1e-3, act, 0.0, halo, pad_mode), rows=2, slope=slope)


@pytest.mark.parametrize("act", ["lrelu", "selu", "tanh"])
def test_every_activation_and_one_slope_for_all(act):
    check((3, 3, 6, 4), NormActOptions("in", 1e-5, act, 0.3, 1, "reflect"), rows=3)
    check((2, 3, 4, 4), NormActOptions("ln", 1e-5, "prelu"), slope=torch.rand(1))


@pytest.mark.parametrize("norm", NORMS)
def test_many_tiles_of_pixels_and_of_channels(norm):
    check((1, 72, 18, 15), NormActOptions(norm, 1e-5, "relu", 0.0, 3, "reflect"), frames=False)
    check((2, 72, 18, 15), NormActOptions(norm, 1e-5, "relu"), slack=300)


def test_a_row_of_several_tiles_and_a_halo_as_wide_as_the_image():
    check((1, 64, 2, 300), NormActOptions("in", 1e-5, "relu", 0.0, 1, "reflect"), frames=False)
    check((1, 64, 1, 300), NormActOptions("in", 1e-5, "relu", 0.0, 3, "replicate"), frames=False)
    check((1, 2, 3, 3), NormActOptions("none", 1e-5, "relu", 0.0, 2, "reflect"), frames=False)


@pytest.mark.parametrize("act", ["none", "relu", "lrelu", "selu", "tanh"])
def test_derivatives_from_the_result(act):
    pre, dy = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 7)
    pre[0, 0, 0, :2] = 0  # where the derivatives have their corner
    tail = NormActOptions("none", 0.0, act, 0.2, 1, "reflect")
    y, *nothing = norm_act_aten(pre, None, None, None, None, NormActOptions("none", 0.0, act, 0.2))
    found = norm_act_backward_triton(
        nhwc(dy), nhwc(y), *nothing, None, None, None, tail, from_output=True, sums=True
    )
    for source, from_output in ((pre, False), (y, True)):
        wanted = norm_act_backward_aten(
            *double(dy, source), *nothing, None, None, None, tail, from_output=from_output
        )
        assert_near(channels_last(found.dx), wanted.dx, "dx")
        assert_near(found.dshift, wanted.dshift, "dshift")


def test_statistics_of_a_mean_of_a_thousand_spreads():
    x = torch.randn(1, 8, 40, 40, dtype=torch.float64) + 1000
    x = x.float()
    for norm in ("in", "ln"):
        tail = NormActOptions(norm, 0.0)
        _, mean, rstd = norm_act_triton(nhwc(x), None, None, None, None, tail)
        _, exact_mean, exact_rstd = norm_act_aten(x.double(), None, None, None, None, tail)
        assert ((rstd / exact_rstd) - 1).abs().max() < 1e-5
        assert ((mean / exact_mean) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("norm", ["in", "ln"])
def test_given_statistics_are_merged_and_empty_parts_skipped(norm):
    x = torch.randn(2, 20, 25, 24) * (0.5 + torch.rand(20, 1, 1)) + 5
    parts = x.flatten(2).split([1, 2, 7] + [1] * 590, 2)
    rows = [
        torch.stack([p.mean(2), p.var(2, correction=0) * p.shape[2], torch.full((2, 20), count)], 1)
        for p, count in zip(parts, [1.0, 2.0, 7.0] + [1.0] * 590, strict=True)
    ]
    empty = torch.zeros(2, 3, 20)
    empty[:, :2] = float("nan")
    partial = torch.stack([*rows[:2], empty, *rows[2:], empty], 1)
    mean, rstd = torch.empty(2, 2, 20)
    merge_statistics(partial, mean, rstd, norm, 1e-5)
    tail = NormActOptions(norm, 1e-5)
    y, *_ = norm_act_triton(nhwc(x), None, None, None, None, tail, statistics=(mean, rstd))
    wanted, _, exact = norm_act_aten(x.double(), None, None, None, None, tail)
    assert_near(rstd, exact, "rstd")
    assert_near(channels_last(y), wanted, "y")


def test_images_of_any_strides_need_no_copy():
    base = torch.randn(2, 9, 12, 20)
    tail = NormActOptions("in", 1e-5, "relu", 0.0, 1, "reflect")
    for view in (base[:, :3], base[:, 1:4].transpose(2, 3), base[:, ::4, ::2, 3:-1]):
        y, *_ = norm_act_triton(view.permute(0, 2, 3, 1), None, None, None, None, tail)
        wanted, *_ = norm_act_aten(view.double(), None, None, None, None, tail)
        assert_near(channels_last(y), wanted, "y")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(dtype):
    x = torch.randn(1, 8, 9, 9).to(dtype).requires_grad_()
    gamma = torch.rand(8, requires_grad=True)
    options = {"norm": "in", "act": "tanh", "halo": 1, "pad_mode": "reflect"}
    y = norm_act(x, gamma=gamma, impl="triton", **options)
    dy = torch.randn_like(y)
    exact = [v.detach().double().requires_grad_() for v in (x, gamma)]
    wanted = norm_act(exact[0], gamma=exact[1], **options)
    # One rounding of the result; the interpreter's to bfloat16 cuts digits off.
    half = 2 * torch.finfo(dtype).eps
    assert_near(y, wanted, "y", half)
    mine = torch.autograd.grad(y, (x, gamma), dy)
    assert [g.dtype for g in mine] == [dtype, torch.float32]
    theirs = torch.autograd.grad(wanted, exact, dy.double())
    assert_near(mine[0], theirs[0], "dx", half)
    assert_near(mine[1], theirs[1], "dgamma")


@pytest.mark.parametrize(("norm", "channels"), [("none", 6), ("in", 6), ("ln", 6), ("in", 3)])
def test_the_operation_and_its_gradients(norm, channels):
    c, image = channels, torch.randn(2, channels, 5, 4)
    inputs = [image, torch.randn(2, c), torch.randn(c), torch.rand(1), torch.randn(2, c, 5, 4)]
    inputs = [v.requires_grad_() for v in inputs]

    def run(impl, x, gamma, beta, slope, residual):
        return norm_act(
            x, norm=norm, gamma=gamma, beta=beta, act="prelu", slope=slope, residual=residual,
            halo=2, pad_mode="replicate", impl=impl,
        )  # fmt: skip

    y = run("triton", *inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = [v.detach().double().requires_grad_() for v in inputs]
    wanted = run("aten", *exact)
    assert_near(y, wanted, "y")
    dy = torch.randn(y.shape)
    first, again = (torch.autograd.grad(y, inputs, dy, retain_graph=True) for _ in range(2))
    theirs = torch.autograd.grad(wanted, exact, dy.double())
    names = ("x", "gamma", "beta", "slope", "residual")
    for name, a, b, c in zip(names, first, again, theirs, strict=True):
        assert torch.equal(a, b), name
        assert_near(a, c, name)


def test_registration():
    x = torch.randn(2, 4, 5, 3, requires_grad=True)
    gamma, slope = torch.rand(4, requires_grad=True), torch.rand(1, requires_grad=True)
    options = ("in", 1e-5, "prelu", 0.0, 1, "reflect", "triton")
    arguments = (x, gamma, None, slope, torch.randn(2, 4, 5, 3), *options)
    torch.library.opcheck(torch.ops.fastunit.norm_act, arguments)


def test_an_empty_batch():
    x, gamma = torch.randn(0, 4, 5, 3, requires_grad=True), torch.rand(4, requires_grad=True)
    y = norm_act(x, norm="ln", gamma=gamma, halo=1, impl="triton")
    assert y.shape == (0, 4, 7, 5)
    dx, dgamma = torch.autograd.grad(y.sum(), (x, gamma))
    assert dx.shape == x.shape
    assert torch.equal(dgamma, torch.zeros(4))


def test_an_image_beyond_32_bit_offsets_is_refused():
    x = torch.empty(1, 3, 2**15, 2**15, device="meta", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"spans 3221225471 values.*impl='aten'"):
        norm_act_triton(x.permute(0, 2, 3, 1), None, None, None, None, NormActOptions(act="relu"))
