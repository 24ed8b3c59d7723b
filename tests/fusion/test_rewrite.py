"""What becomes one operation, and what has to be left: values with two users, writes, options."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.fusion import rules
from fastunit.fusion.backend import eager
from fastunit.fusion.report import Report

X, W, W4 = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4, 4, 3, 3)
WT, B, G = torch.randn(3, 4, 3, 3), torch.randn(4), torch.rand(4) + 0.5
R = torch.randn(2, 4, 8, 8)


@pytest.fixture(autouse=True)
def _everything(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(rules, "loss", lambda chain: None)


def run(f: Callable[..., Tensor], *inputs: Tensor) -> Report:
    """Compile a function, compare what it returns and does to its inputs, and return the report."""
    report = Report()
    compiled = torch.compile(f, backend=eager(report), fullgraph=True)
    given = [[each.clone() for each in inputs] for _ in range(2)]
    with torch.no_grad():
        found, wanted = compiled(*given[0]), f(*given[1])
    torch.testing.assert_close((found, given[0]), (wanted, given[1]), rtol=1e-4, atol=1e-4)
    return report


def conv(x, w=W, b=B, **options):
    return F.conv2d(x, w, b, **({"padding": 1} | options))


FUSED = {
    "conv": (conv, "3x3 convolution"),
    "zeros around": (lambda x: conv(F.pad(x, (1, 1, 1, 1))), "zero padding, 3x3 convolution"),
    "replicate": (
        lambda x: F.relu(conv(F.pad(x, (2,) * 4, "replicate"), padding=0)),
        "replicate padding, 3x3 convolution, relu",
    ),
    "transpose": (
        lambda x: F.selu(F.conv_transpose2d(x, WT, B, 2, 1, 1)),
        "3x3 transposed convolution, selu",
    ),
    "upsample": (
        lambda x: F.leaky_relu(F.instance_norm(conv(F.interpolate(x, scale_factor=2)))),
        "nearest 2x, 3x3 convolution, instance norm, lrelu",
    ),
    "affine": (
        lambda x: torch.tanh(F.instance_norm(conv(x), weight=G, bias=B, eps=1e-3)),
        "3x3 convolution, instance norm, tanh",
    ),
    "evaluation": (
        lambda x: F.prelu(F.batch_norm(conv(x), B, G, G, B), G),
        "3x3 convolution, batch norm in evaluation, prelu",
    ),
    "no affine": (
        lambda x: F.batch_norm(conv(x), B, G),
        "3x3 convolution, batch norm in evaluation",
    ),
    "residual": (lambda x: R + conv(x).relu_(), "3x3 convolution, relu, residual"),
    "in place": (lambda x: conv(x).add_(R), "3x3 convolution, residual"),
    "lone norm": (
        lambda x: F.relu(F.instance_norm(F.conv2d(x, W[:3, :1], groups=3, padding=1))),
        "instance norm, relu",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused(name):
    f, what = FUSED[name]
    assert what in [entry.what for entry in run(f, X).fused]


def tapped(x):
    y = conv(x)
    return F.relu(y), y


def tapped_padding(x):
    y = F.pad(x, (1,) * 4, "reflect")
    return conv(y, padding=0), y


def used_twice(x):
    y = conv(x)
    return F.instance_norm(y) + y


def doubled(x):
    y = conv(x)
    return y + y


def written_between(x):
    y = conv(x)
    x.mul_(2)
    return F.relu(y)


def padding_written_between(x):
    y = F.pad(x, (1,) * 4, "reflect")
    x.zero_()
    return conv(y, padding=0)


def residual_is_written(x):
    total = x.new_zeros(2, 4, 8, 8)
    total += conv(x)
    return total, total * 2


def an_alias_is_written(x):
    view = x[:1]
    y = conv(x)
    view.zero_()
    return torch.tanh(y)


def autocast_ends_between(x):
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    return F.relu(y.float())


@pytest.mark.parametrize(
    ("f", "fused"),
    [
        (tapped, ["3x3 convolution"]),
        (tapped_padding, ["3x3 convolution"]),
        (used_twice, ["3x3 convolution", "instance norm, residual"]),
        (doubled, ["3x3 convolution"]),
        (written_between, ["3x3 convolution"]),
        (padding_written_between, ["3x3 convolution"]),
        (residual_is_written, ["3x3 convolution"]),
        (an_alias_is_written, ["3x3 convolution"]),
        (autocast_ends_between, ["3x3 convolution"]),
        (lambda x: F.relu(conv(x) + R), ["3x3 convolution, residual"]),
        (lambda x: conv(x) + R[:1], ["3x3 convolution"]),
        (lambda x: conv(x) + 1, ["3x3 convolution"]),
        (lambda x: torch.add(conv(x), R, alpha=2), ["3x3 convolution"]),
        (lambda x: conv(F.pad(x, (1, 1, 1, 1), value=2.0)), ["3x3 convolution"]),
        (lambda x: conv(F.pad(x, (1, 0, 1, 0))), ["3x3 convolution"]),
        (lambda x: conv(F.pad(x, (1,) * 4, "reflect")), ["3x3 convolution"]),
        (lambda x: conv(F.pad(x, (1,) * 4, "circular"), padding=0), ["3x3 convolution"]),
        (lambda x: conv(F.interpolate(x, scale_factor=3)), ["3x3 convolution"]),
        (
            lambda x: conv(F.interpolate(x, scale_factor=2, mode="bilinear")),
            ["3x3 convolution"],
        ),
        (lambda x: conv(F.interpolate(x, scale_factor=2), stride=2), ["3x3 convolution"]),
        (lambda x: F.gelu(conv(x)), ["3x3 convolution"]),
    ],
)
def test_a_chain_ends_where_it_must(f, fused):
    assert [entry.what for entry in run(f, X).fused] == fused


def added_to_its_input(x):
    y = x * 1
    y += F.conv2d(F.pad(y, (1,) * 4), W[:3], padding=0)
    return y


def repeated_and_written(x):
    y = x * 1
    z = conv(F.interpolate(y[:], scale_factor=2))
    return z + y.relu_().sum()


def padded_and_written_in_a_list(x):
    y = x * 1
    z = conv(F.pad(y, (1,) * 4), padding=0)
    torch._foreach_mul_((y,), 3.0)
    return z + y.sum()


def padded_and_other_written(x):
    y = F.pad(x * 1, (1,) * 4, "reflect")
    return conv(y, padding=0).add_(R)


@pytest.mark.parametrize(
    ("f", "fused"),
    [
        (added_to_its_input, "3x3 convolution"),
        (repeated_and_written, "3x3 convolution"),
        (padded_and_written_in_a_list, "3x3 convolution"),
        (padded_and_other_written, "reflect padding, 3x3 convolution, residual"),
    ],
)
def test_a_copy_stays_where_its_source_is_written_later(f, fused):
    report, gradients = Report(), []
    for each in (torch.compile(f, backend=eager(report), fullgraph=True), f):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(each(x).square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert [entry.what for entry in report.fused] == [fused]


def statistics_kept(x):
    return F.batch_norm(conv(x), B.clone(), G.clone(), training=True)


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda x: F.conv2d(x, W[:3, :1], groups=3), "groups=3"),
        (lambda x: conv(x, dilation=2), r"dilation=\(?2"),
        (lambda x: conv(x, stride=(2, 1)), r"stride=\(2, 1\) is not one number"),
        (lambda x: conv(x, padding="same"), "padding='same' is not one number"),
        (lambda x: F.conv2d(x[0], W), r"an image of 3 dimensions, not \[N, C, H, W\]"),
        (statistics_kept, "not a norm of each image by itself"),
    ],
)
def test_what_is_left_says_why(f, why):
    report = run(f, X)
    assert any(re.search(why, entry.why) for entry in report.left), report


def test_other_deviations_are_no_layer_norm():
    def norm(x, unbiased=True, dims=(1, 2, 3)):
        y = conv(x)
        mean, std = (
            y.mean(dims, keepdim=True),
            y.std(dims, unbiased=unbiased, keepdim=True),
        )
        return (y - mean) / (std + 1e-5)

    assert run(norm, X).fused[0].what == "3x3 convolution, layer norm"
    assert run(lambda x: norm(x, unbiased=False), X).fused[0].what == "3x3 convolution"
    assert run(lambda x: norm(x, dims=(0, 2, 3)), X).fused[0].what == "3x3 convolution"


def test_a_graph_with_transforms_is_left():
    report = run(torch.func.vmap(lambda x: conv(x[None])[0]), X)
    assert not report.fused and report.left[0].why == "torch.func is entered in it"


def test_a_cpu_keeps_what_it_is_good_at(monkeypatch):
    monkeypatch.undo()
    wide = torch.randn(32, 32, 5, 5)

    def small(x):
        return F.conv2d(F.interpolate(x, scale_factor=2), wide, padding=2)

    report = run(conv, X)
    assert not report.fused and report.left[0].why == "no faster on a CPU"
    report = run(small, torch.randn(1, 32, 8, 8))
    assert not report.fused and report.left[0].why == "too small to be faster on a CPU"
    assert run(small, torch.randn(1, 32, 64, 64)).fused
