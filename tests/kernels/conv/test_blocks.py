"""The convolutional blocks in plain PyTorch: registration, groups, dtypes, formats and errors.

What every option computes is in test_ops.py; the Triton kernels are in tests/interpreter.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import conv_gemm, conv_norm_act, conv_transpose, upsample_conv
from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv import block as conv_block
from fastunit.kernels.conv.phases import combined_filters
from tests.support.tensors import rand

FORMATS = (torch.contiguous_format, torch.channels_last)


def tensors(groups=0, n=2, dtype=torch.float64):
    """Return the tensors of a block from 3 channels to 4, as leaves, by name."""
    lead = (groups,) if groups else ()
    shapes = {
        "x": (n, 3, 6, 5),
        "w": (*lead, 4, 3, 3, 3),
        "b": (*lead, 4),
        "gamma": (*lead, 4),
        "beta": (*lead, 4),
    }
    return {name: rand(*shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}


def transposed(groups=0, n=2, dtype=torch.float64):
    given = tensors(groups, n, dtype)
    return given | {"w": given["w"].detach().transpose(-4, -3).contiguous().requires_grad_()}


def plain(groups=0, n=2, dtype=torch.float64):
    given = tensors(groups, n, dtype)
    return {name: given[name] for name in ("x", "w", "b")}


BLOCKS = {
    "conv_gemm": (conv_gemm, plain, {"act": "lrelu", "slope": 0.2}),
    "conv_norm_act in": (
        conv_norm_act,
        tensors,
        {"padding": 1, "pad_mode": "reflect", "norm": "in", "act": "relu"},
    ),
    "conv_norm_act ln, strided, haloed": (
        conv_norm_act,
        tensors,
        {
            "stride": 2,
            "padding": 1,
            "pad_mode": "replicate",
            "norm": "ln",
            "act": "selu",
            "halo": 1,
            "halo_mode": "reflect",
        },
    ),
    "upsample_conv ln": (
        upsample_conv,
        tensors,
        {"padding": 2, "pad_mode": "reflect", "norm": "ln", "act": "relu"},
    ),
    "conv_transpose in": (
        conv_transpose,
        transposed,
        {"padding": 1, "output_padding": 1, "norm": "in", "act": "relu"},
    ),
}
every_block = pytest.mark.parametrize("block", BLOCKS)


def apply(block, groups=0, n=2, dtype=torch.float64):
    op, make, options = BLOCKS[block]
    given = make(groups, n, dtype)
    return op, given, options


def gradients(op, given, options, dy=None):
    y = op(**given, **options)
    dy = torch.ones_like(y) if dy is None else dy
    return y, *torch.autograd.grad(y, list(given.values()), dy)


@every_block
def test_gradcheck(block):
    op, given, options = apply(block)
    names = list(given)

    def run(*values):
        return op(**dict(zip(names, values, strict=True)), **options)

    assert torch.autograd.gradcheck(run, tuple(given.values()))


@every_block
def test_operators_are_registered_correctly(block, monkeypatch):
    op, given, options = apply(block)
    calls = []

    def spy_on(name, operator):
        def spy(*args):
            calls.append((operator, args))
            return operator(*args)

        monkeypatch.setattr(conv_block, name, spy)

    monkeypatch.setattr(eager, "only_autograd", lambda *tensors: False)
    spy_on("_forward", conv_block._forward)
    spy_on("_backward", conv_block._backward)
    gradients(op, given, options)
    (forward, args), (backward, its_args) = calls
    torch.library.opcheck(forward, args)
    its_args = [t.detach() if isinstance(t, torch.Tensor) else t for t in its_args]
    torch.library.opcheck(backward, tuple(its_args))


@every_block
def test_compiles_into_one_graph_with_its_gradients(block):
    torch._dynamo.reset()
    op, given, options = apply(block)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for mine, wanted in zip(
        gradients(compiled, given, options), gradients(op, given, options), strict=True
    ):
        torch.testing.assert_close(mine, wanted)


@every_block
def test_compiles_for_every_size(block):
    torch._dynamo.reset()
    op, given, options = apply(block)
    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 5), (9, 8)):
        sized = given | {"x": rand(3, 3, *size).requires_grad_()}
        for mine, wanted in zip(
            gradients(compiled, sized, options), gradients(op, sized, options), strict=True
        ):
            torch.testing.assert_close(mine, wanted)


@every_block
def test_a_second_derivative_is_refused(block):
    op, given, options = apply(block)
    y = op(**given, **options)
    (dx,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        dx.sum().backward()


@every_block
def test_groups_are_separate_blocks(block):
    op, given, options = apply(block, groups=2, n=4)
    whole = gradients(op, given, options)
    for half in (0, 1):
        own = {name: t.detach()[half].requires_grad_() for name, t in given.items() if name != "x"}
        own["x"] = given["x"].detach()[2 * half :][:2].requires_grad_()
        own = {name: own[name] for name in given}
        y, *rest = gradients(op, own, options)
        torch.testing.assert_close(whole[0][2 * half :][:2], y)
        torch.testing.assert_close(whole[1][2 * half :][:2], rest[0])
        for mine, alone in zip(whole[2:], rest[1:], strict=True):
            torch.testing.assert_close(mine[half], alone)


@every_block
def test_an_empty_batch(block):
    op, given, options = apply(block, groups=2, n=0)
    y, dx, *rest = gradients(op, given, options)
    assert y.shape[0] == 0
    assert dx.shape == given["x"].shape
    for gradient, parameter in zip(rest, list(given.values())[1:], strict=True):
        assert gradient.shape == parameter.shape
        assert not gradient.any()


@pytest.mark.parametrize("memory_format", FORMATS)
@every_block
def test_formats_of_results_and_gradients(block, memory_format):
    op, given, options = apply(block)
    wanted = gradients(op, given, options)
    given["x"] = given["x"].detach().to(memory_format=memory_format).requires_grad_()
    found = gradients(op, given, options)
    assert all(t.is_contiguous(memory_format=memory_format) for t in found[:2])
    for mine, value in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, value)


@every_block
def test_half_precision_keeps_float32_parameters(block):
    op, given, options = apply(block, dtype=torch.float32)
    half = given | {"x": given["x"].detach().bfloat16().requires_grad_()}
    y, dx, *rest = gradients(op, half, options)
    assert y.dtype == dx.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in rest)
    exact = gradients(
        op, {name: t.detach().double().requires_grad_() for name, t in half.items()}, options
    )
    assert (y.double() - exact[0]).abs().max() < 0.05 * exact[0].abs().max()


@every_block
def test_autocast_chooses_the_dtype(block):
    op, given, options = apply(block, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(**given, **options)
    assert torch.equal(y, op(**given | {"x": given["x"].bfloat16()}, **options))
    found = torch.autograd.grad(y.float().sum(), list(given.values()))
    assert all(gradient.dtype == torch.float32 for gradient in found)


@every_block
def test_same_bits_every_time(block):
    op, given, options = apply(block, dtype=torch.float32)
    first, again = gradients(op, given, options), gradients(op, given, options)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("taps", "stride", "padding", "more"), [(3, 2, 1, 1), (4, 2, 1, 0)])
def test_transposed_convolution_is_pytorch_s(taps, stride, padding, more):
    x, w, b = rand(2, 3, 5, 4), rand(3, 6, taps, taps), rand(6)
    options = {"stride": stride, "padding": padding, "output_padding": more}
    torch.testing.assert_close(
        conv_transpose(x, w, b, **options, act="relu"),
        F.conv_transpose2d(x, w, b, **options).relu(),
    )


def test_valid_convolution_is_pytorch_s():
    x, w, b = rand(2, 3, 6, 7), rand(5, 3, 3, 2), rand(5)
    torch.testing.assert_close(
        conv_gemm(x, w, b, stride=2, act="tanh"), F.conv2d(x, w, b, stride=2).tanh()
    )


def test_a_halo_is_padding_of_the_result():
    given = tensors()
    y = conv_norm_act(**given, norm="in", act="relu", halo=2, halo_mode="reflect")
    small = conv_norm_act(**given, norm="in", act="relu")
    torch.testing.assert_close(y, F.pad(small, (2,) * 4, mode="reflect"))


def test_a_whole_number_is_a_slope():
    given = plain()
    torch.testing.assert_close(
        conv_gemm(**given, act="lrelu", slope=3), conv_gemm(**given, act="lrelu", slope=3.0)
    )


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_products_are_asked_for_as_pytorch_s(precision):
    before = torch.backends.cudnn.conv.fp32_precision  # monkeypatch cannot put this one back
    try:
        torch.backends.cudnn.conv.fp32_precision = precision
        with runtime.recorded_launches(90) as launches:
            conv_gemm(X, W, impl="triton")
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert launches[-1].constexprs["PRECISION"] == precision


def test_upsampling_filters_are_summed_in_float32():
    w = torch.full((1, 1, 1, 3, 3), 1 + 2**-8, dtype=torch.bfloat16)
    w[..., 0, 0] = 1.0
    combined = combined_filters(w)
    assert combined.dtype == torch.float32
    assert combined[0, 0, 0, 1, 1] == w.float()[0, 0, 0, 1:, 1:].sum()


X, W = torch.ones(4, 3, 6, 5), torch.ones(8, 3, 3, 3)
PAIR = torch.ones(3, 8, 3, 3, 3)
ERRORS = [
    (lambda: conv_norm_act(X, W, stride=0), ("stride=0", "at least 1")),
    (lambda: conv_norm_act(X, W, stride=(2, 3)), ("stride=(2, 3)", "same for both axes")),
    (lambda: conv_norm_act(X, W, stride=2.0), ("stride=2.0", "integer")),
    (lambda: conv_transpose(X, W.transpose(0, 1), padding=-1), ("padding=-1", "negative")),
    (lambda: conv_norm_act(X, W, halo=9, halo_mode="reflect"), ("reflect padding of 9", "4x3")),
    (lambda: conv_norm_act(X, W, halo_mode="same"), ("halo_mode='same'", "zero, reflect")),
    (lambda: conv_norm_act(X, PAIR), ("3 groups", "N=4")),
    (lambda: conv_norm_act(X, W.double()), ("w must be torch.float32", "torch.float64")),
    (lambda: conv_norm_act(X, W, torch.ones(8).half()), ("b must be", "torch.float16")),
    (lambda: conv_norm_act(X, PAIR[:2], torch.ones(8)), ("b must be", "(2, 8)", "(8,)")),
    (lambda: conv_norm_act(X, W, gamma=torch.ones(3)), ("gamma must be", "(8,)", "(3,)")),
    (lambda: conv_norm_act(X, W, impl="cuda"), ("impl='cuda'", "auto, triton, aten")),
    (lambda: conv_norm_act(X, W, impl="triton"), ("impl='triton'", "TRITON_INTERPRET", "cpu")),
    (lambda: conv_norm_act(X.double(), W.double(), impl="triton"), ("triton", "torch.float64")),
    (lambda: conv_transpose(X, W), ("w must be [C, K, R, S]", "C=3", "(8, 3, 3, 3)")),
    (lambda: conv_transpose(X, W.transpose(0, 1), output_padding=2), ("output_padding=2", "2")),
    (lambda: conv_transpose(X, W.transpose(0, 1), padding=9), ("padding=9", "result")),
    (lambda: conv_gemm(X, W, act="mish"), ("act='mish'", "relu")),
    (lambda: conv_gemm(X, W, act="prelu"), ("slope", "prelu")),
    (lambda: upsample_conv(X, W, padding=12, pad_mode="reflect"), ("reflect", "12", "12x10")),
    (
        lambda: conv_norm_act(X[:, :, :0], W[..., :1, :1], padding=1, pad_mode="replicate"),
        ("replicate padding of 1", "0x5"),
    ),
]


@pytest.mark.parametrize(("call", "parts"), ERRORS, ids=[" ".join(parts) for _, parts in ERRORS])
def test_a_wrong_argument_is_named(call, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        call()


def test_triton_takes_square_transposed_filters_only():
    with runtime.recorded_launches(90), pytest.raises(ValueError, match=r"square filters.*2x3"):
        upsample_conv(X, torch.ones(8, 3, 2, 3), padding=1, impl="triton")
    with runtime.recorded_launches(90) as launches, runtime.default_impl("triton"):
        upsample_conv(X, torch.ones(8, 3, 2, 3), padding=1)
    assert not launches


@pytest.mark.slow
@every_block
def test_compiles_with_the_default_backend(block):
    torch._dynamo.reset()
    op, given, options = apply(block)
    compiled = torch.compile(op, fullgraph=True)
    for mine, wanted in zip(
        gradients(compiled, given, options), gradients(op, given, options), strict=True
    ):
        torch.testing.assert_close(mine, wanted)
