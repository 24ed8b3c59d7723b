"""Every option of the image operations against plain float64 formulas written here."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import conv_norm_act, norm_act, upsample_conv
from tests.support.tensors import rand

NORMS = ("none", "in", "ln")
ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")
PADS = {"zero": "constant", "reflect": "reflect", "replicate": "edge"}  # ours -> NumPy's
FORMATS = (torch.contiguous_format, torch.channels_last)
SLOPE, EPS = 0.15, 1e-3  # neither is the default


def padded(x, pad, mode):
    """Pad by index, with NumPy's idea of where each pixel comes from; zeros by concatenation."""
    if mode == "zero":
        n, c, h, w = x.shape
        wide = torch.cat([x.new_zeros(n, c, h, pad), x, x.new_zeros(n, c, h, pad)], 3)
        row = x.new_zeros(n, c, pad, w + 2 * pad)
        return torch.cat([row, wide, row], 2)
    rows, columns = (torch.from_numpy(np.pad(np.arange(s), pad, PADS[mode])) for s in x.shape[2:])
    return x[:, :, rows][:, :, :, columns]


def normalised(x, norm, eps):
    if norm == "none":
        return x
    axes = (2, 3) if norm == "in" else (1, 2, 3)
    count = x[0, 0].numel() if norm == "in" else x[0].numel()
    centred = x - x.sum(axes, keepdim=True) / count
    squares = (centred**2).sum(axes, keepdim=True)
    if norm == "in":
        return centred / (squares / count + eps).sqrt()
    return centred / ((squares / (count - 1)).sqrt() + eps)


def activated(x, act, slope):
    if act in ("relu", "lrelu", "prelu"):
        negative = {"relu": 0.0, "lrelu": slope}.get(act)
        negative = slope.view(1, -1, 1, 1) if negative is None else negative
        return torch.where(x > 0, x, negative * x)
    if act == "selu":
        scale, alpha = 1.0507009873554805, 1.6732632423543772
        return scale * torch.where(x > 0, x, alpha * (x.exp() - 1))
    return (2 * x).sigmoid() * 2 - 1 if act == "tanh" else x


def ref_norm_act(x, norm, gamma, beta, eps, act, slope, residual):
    y = normalised(x, norm, eps)
    y = y * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
    return activated(y, act, slope) + residual


def assert_same(mine, wanted, inputs, tolerance=1e-10):
    """Compare two results and every gradient, by name, for one random upstream gradient."""
    assert mine.shape == wanted.shape
    assert mine.dtype == torch.float64
    dy = torch.randn_like(wanted)
    got = torch.autograd.grad(mine, list(inputs.values()), dy)
    expected = torch.autograd.grad(wanted, list(inputs.values()), dy)
    for name, a, b in zip(("y", *inputs), (mine, *got), (wanted, *expected), strict=True):
        scale = max(1.0, b.abs().max().item())
        assert (a - b).abs().max().item() < tolerance * scale, name


def leaves(**tensors):
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def tail(k, shape, act, per_channel=False):
    """Return leaves gamma, beta, residual, and slope where the activation learns it."""
    slope = {"slope": torch.rand(k if per_channel else 1, dtype=torch.float64)}
    extra = slope if act == "prelu" else {}
    return leaves(gamma=rand(k), beta=rand(k), residual=rand(*shape), **extra)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_norm_act_equals_its_formula(norm, act, batch):
    inputs = leaves(x=rand(batch, 4, 5, 7) * 3 + 1) | tail(4, (batch, 4, 5, 7), act, batch == 3)
    options = {"norm": norm, "act": act, "eps": EPS}
    mine = norm_act(**({"slope": SLOPE} | inputs), **options)
    assert_same(mine, ref_norm_act(**({"slope": SLOPE} | inputs), **options), inputs)


@pytest.mark.parametrize("pad_mode", PADS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
def test_conv_norm_act_equals_its_formula(norm, act, pad_mode):
    for stride, pad, taps in ((1, 1, (3, 3)), (2, 1, (4, 4)), (1, 3, (7, 7)), (1, 0, (2, 3))):
        where = leaves(x=rand(2, 3, 9, 6), w=rand(4, 3, *taps), b=rand(4))
        y = F.conv2d(padded(where["x"], pad, pad_mode), where["w"], where["b"], stride)
        more = tail(4, y.shape, act)
        given, options = {"slope": SLOPE} | more, {"norm": norm, "act": act, "eps": EPS}
        mine = conv_norm_act(
            **where, stride=stride, padding=pad, pad_mode=pad_mode, **given, **options
        )
        assert_same(mine, ref_norm_act(y, **given, **options), where | more)


def test_everything_but_the_filters_may_be_left_out():
    x, w = rand(1, 2, 6, 6), rand(3, 2, 3, 3)
    torch.testing.assert_close(conv_norm_act(x, w), F.conv2d(x, w))
    y = conv_norm_act(F.interpolate(x, scale_factor=2), w, torch.zeros(3).double(), padding=1)
    torch.testing.assert_close(upsample_conv(x, w, padding=1), y)
    assert torch.equal(norm_act(x), x)
    torch.testing.assert_close(norm_act(x, act="lrelu"), activated(x, "lrelu", 0.2))
    torch.testing.assert_close(norm_act(x, norm="in"), normalised(x, "in", 1e-5))


@pytest.mark.parametrize("pad_mode", PADS)
@pytest.mark.parametrize(("pad", "size"), [(2, 5), (1, 3), (0, 1), (3, 7)])
def test_upsample_conv_repeats_pixels_then_convolves(pad, size, pad_mode):
    inputs = leaves(x=rand(2, 3, 4, 5), w=rand(2, 3, size, size), b=rand(2))
    large = inputs["x"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = F.conv2d(padded(large, pad, pad_mode), inputs["w"], inputs["b"])
    assert_same(upsample_conv(**inputs, padding=pad, pad_mode=pad_mode), wanted, inputs)


def test_upsample_conv_keeps_the_doubled_size_by_default():
    assert upsample_conv(rand(1, 2, 3, 4), rand(1, 2, 5, 5)).shape == (1, 1, 6, 8)


@pytest.mark.parametrize(("norm", "act"), list(itertools.product(NORMS, ACTS)))
def test_gradcheck(norm, act):
    where = leaves(x=rand(2, 2, 4, 3), w=rand(2, 2, 3, 3), b=rand(2))
    given = where | tail(2, (2, 2, 4, 3), act)

    def apply(*values):
        named = {"slope": SLOPE} | dict(zip(given, values, strict=True))
        return conv_norm_act(**named, padding=1, pad_mode="reflect", norm=norm, act=act)

    assert torch.autograd.gradcheck(apply, tuple(given.values()))


def test_gradcheck_of_upsample_conv():
    inputs = leaves(x=rand(1, 2, 3, 2), w=rand(2, 2, 5, 5), b=rand(2))
    assert torch.autograd.gradcheck(upsample_conv, tuple(inputs.values()))


SHAPES = {
    "UNIT's residual block": ((1, 64, 16, 16), lambda x: x),
    "odd": ((2, 3, 17, 31), lambda x: x),
    "mean of a thousand spreads": ((2, 8, 16, 16), lambda x: x + 1000),
    "sliced": ((2, 9, 20, 40), lambda x: x[:, 1:8:2, ::2, 3:-1]),
}


def eager(x, norm, act, slope):
    """Return what PyTorch's own float32 operations make of it."""
    if norm == "in":
        x = F.instance_norm(x)
    elif norm == "ln":
        flat = x.flatten(1)
        x = ((flat - flat.mean(1, True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(x)
    return activated(x, act, slope)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_as_accurate_as_eager_pytorch(shape, norm, memory_format):
    size, change = SHAPES[shape]
    x = change(rand(*size, dtype=torch.float32).to(memory_format=memory_format)).detach()
    dy = torch.randn_like(x)

    def run(f, dtype):
        leaf = x.to(dtype).requires_grad_()
        y = f(leaf)
        return y.double(), torch.autograd.grad(y, leaf, dy.to(dtype))[0].double()

    exact = run(lambda v: activated(normalised(v, norm, 1e-5), "lrelu", 0.2), torch.float64)
    mine = run(lambda v: norm_act(v, norm=norm, act="lrelu"), torch.float32)
    theirs = run(lambda v: eager(v, norm, "lrelu", 0.2), torch.float32)
    for name, e, m, t in zip(("y", "dx"), exact, mine, theirs, strict=True):
        floor = 1e-6 * e.abs().max()
        assert (m - e).abs().max() <= 2 * (t - e).abs().max() + floor, name


@pytest.mark.parametrize("pad_mode", PADS)
def test_float32_convolution_is_as_accurate_as_eager_pytorch(pad_mode):
    x, w, b = (rand(*s, dtype=torch.float32) for s in ((2, 16, 17, 31), (16, 16, 3, 3), (16,)))
    exact = F.conv2d(padded(x.double(), 1, pad_mode), w.double(), b.double())
    exact = activated(normalised(exact, "in", 1e-5), "relu", 0)
    theirs = eager(F.conv2d(padded(x, 1, pad_mode), w, b), "in", "relu", 0)
    mine = conv_norm_act(x, w, b, padding=1, pad_mode=pad_mode, norm="in", act="relu")
    assert mine.dtype == torch.float32
    assert (mine - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-6


OPS = {
    "norm_act": lambda x, w: norm_act(x, norm="ln", act="tanh"),
    "prelu": lambda x, w: norm_act(x, norm="in", act="prelu", slope=torch.tensor([0.1]).to(x)),
    "conv_norm_act": lambda x, w: conv_norm_act(
        x, w, padding=1, pad_mode="reflect", norm="in", act="relu", residual=x
    ),
    "strided": lambda x, w: conv_norm_act(x, w, stride=2, padding=1, pad_mode="replicate"),
    "upsample_conv": lambda x, w: upsample_conv(x, w, padding=1, pad_mode="reflect"),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_keep_the_memory_format(op, memory_format):
    x, w = rand(2, 4, 6, 8), rand(4, 4, 3, 3)
    y = OPS[op](x.to(memory_format=memory_format), w)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, OPS[op](x, w))


@pytest.mark.parametrize("op", OPS)
def test_strided_views_give_what_their_copies_give(op):
    w = rand(4, 4, 3, 3)
    base = rand(3, 9, 20, 14)
    for view in (base[1:, 1:8:2, ::2, 3:-3], base[:, :4].transpose(2, 3), base[:1, 5:]):
        torch.testing.assert_close(OPS[op](view, w), OPS[op](view.clone(), w))


@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(op):
    x, w = leaves(x=rand(0, 4, 6, 8), w=rand(4, 4, 3, 3)).values()
    y = OPS[op](x, w)
    assert y.shape == (0, *OPS[op](rand(1, 4, 6, 8), w).shape[1:])
    dx, dw = torch.autograd.grad(y.sum(), (x, w), allow_unused=True)
    assert dx.shape == x.shape
    assert dw is None or not dw.any()


X, W, B = torch.ones(2, 3, 6, 5), torch.ones(4, 3, 3, 3), torch.ones(4)
ERRORS = [
    (lambda: norm_act(X[0, 0]), ("x must be [N, C, H, W]", "(6, 5)")),
    (lambda: norm_act(X.long()), ("x", "floating", "torch.int64")),
    (lambda: norm_act(X, norm="batch"), ("norm='batch'", "none, in, ln")),
    (lambda: norm_act(X, norm=["in"]), ("norm=['in']", "none, in, ln")),
    (lambda: norm_act(X, act="mish"), ("act='mish'", "none, relu, lrelu, prelu, selu, tanh, gelu")),
    (lambda: norm_act(X, gamma=B), ("gamma", "(3,)", "(4,)")),
    (lambda: norm_act(X, beta=torch.ones(3, 1)), ("beta", "(3,)", "(3, 1)")),
    (lambda: norm_act(X, residual=X[:1]), ("residual", "(1, 3, 6, 5)", "(2, 3, 6, 5)")),
    (lambda: norm_act(X, act="prelu"), ("slope", "prelu", "0.2")),
    (lambda: norm_act(X, act="prelu", slope=torch.ones(2)), ("slope", "[3]", "(2,)")),
    (lambda: norm_act(X, act="lrelu", slope=torch.ones(3)), ("slope", "lrelu", "(3,)")),
    (lambda: conv_norm_act(X[0, 0], W), ("x must be [N, C, H, W]", "(6, 5)")),
    (lambda: conv_norm_act(X, W[0]), ("w must be [K, C, R, S]", "C=3", "(3, 3, 3)")),
    (lambda: conv_norm_act(X, W[:, :2]), ("w must be", "C=3", "(4, 2, 3, 3)")),
    (lambda: conv_norm_act(X, W, B[:2]), ("b must be", "(4,)", "(2,)")),
    (lambda: conv_norm_act(X, W, padding=-1), ("padding=-1", "negative")),
    (lambda: conv_norm_act(X, W, pad_mode="same"), ("pad_mode='same'", "zero, reflect, replicate")),
    (lambda: conv_norm_act(X, W, padding=5, pad_mode="reflect"), ("reflect", "5", "6x5")),
    (lambda: conv_norm_act(X[:, :, :2], W), ("3x3 filter", "2x5", "padded by 0")),
    (lambda: conv_norm_act(X, W, norm="bn"), ("norm='bn'", "none, in, ln")),
    (lambda: conv_norm_act(X, W, residual=X), ("residual", "(2, 3, 6, 5)", "(2, 4, 4, 3)")),
    (lambda: upsample_conv(X[0, 0], W), ("x must be [N, C, H, W]", "(6, 5)")),
    (lambda: upsample_conv(X, W[:, :1]), ("w must be", "C=3", "(4, 1, 3, 3)")),
    (lambda: upsample_conv(X, W, pad_mode="same"), ("pad_mode='same'", "zero, reflect, replicate")),
]


@pytest.mark.parametrize(("call", "parts"), ERRORS, ids=[" ".join(parts) for _, parts in ERRORS])
def test_a_wrong_argument_is_named(call, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        call()


def block(x, w, b):
    return conv_norm_act(x, w, b, padding=1, pad_mode="reflect", norm="in", act="lrelu")


def test_compiles_into_one_graph_with_its_gradients():
    torch._dynamo.reset()
    inputs = leaves(x=rand(2, 3, 8, 8), w=rand(4, 3, 3, 3), b=rand(4))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same(compiled(**inputs), block(**inputs), inputs)


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    torch._dynamo.reset()
    inputs = rand(2, 3, 8, 8), rand(4, 3, 3, 3), rand(4)
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(*inputs), block(*inputs))
