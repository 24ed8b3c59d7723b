"""The convolutional blocks on a GPU, against float64 and next to eager PyTorch's own error."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import conv_gemm, conv_norm_act, conv_transpose, upsample_conv
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tile_costs import REGISTERS

pytestmark = pytest.mark.gpu

# dtype, and whether float32 may be multiplied as tf32.
PRECISIONS = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
}
# Sums of thousands in fp32; the lower bits of an operand that tensor cores cut off for tf32.
FLOORS = {"bf16": 2e-6, "fp16": 2e-6, "fp32": 2e-6, "tf32": 2**-11}
KINK = 0.1


class Case(NamedTuple):  # images [n, c, *size], k filters of taps x taps; extras are tensors
    op: Any
    n: int
    c: int
    k: int
    taps: int
    size: tuple[int, int]
    options: dict[str, Any]
    extras: tuple[str, ...] = ()
    groups: int = 0


IN = {"norm": "in", "act": "relu"}
LN = {"norm": "ln", "act": "relu"}
REFLECT_1 = {"padding": 1, "pad_mode": "reflect"}
REFLECT_3 = {"padding": 3, "pad_mode": "reflect"}
AFFINE = ("gamma", "beta")
EVERYTHING = REFLECT_1 | {"norm": "in", "act": "prelu", "halo": 2, "halo_mode": "reflect"}
TRANSPOSE = {"stride": 2, "padding": 1, "output_padding": 1}
LRELU = {"stride": 2, "padding": 1, "act": "lrelu"}
SELU = {"stride": 3, "padding": 1, "pad_mode": "replicate", "act": "selu"}

CASES = {
    "residual": Case(conv_norm_act, 1, 256, 256, 3, (64, 64), REFLECT_1 | IN, ("residual",)),
    "first": Case(conv_norm_act, 1, 3, 64, 7, (256, 256), REFLECT_3 | IN),
    "down": Case(conv_norm_act, 1, 64, 128, 4, (256, 256), REFLECT_1 | IN | {"stride": 2}),
    "last": Case(conv_norm_act, 1, 64, 3, 7, (256, 256), REFLECT_3 | {"act": "tanh"}),
    "discriminator": Case(conv_norm_act, 2, 128, 256, 4, (64, 64), LRELU | REFLECT_1),
    "domains": Case(conv_norm_act, 4, 64, 64, 3, (32, 32), REFLECT_1 | LN, AFFINE, groups=2),
    "everything": Case(
        conv_norm_act, 2, 20, 70, 3, (17, 31), EVERYTHING, (*AFFINE, "slope", "residual")
    ),
    "odd": Case(conv_norm_act, 3, 3, 20, 4, (17, 31), SELU, AFFINE),
    "valid": Case(conv_gemm, 1, 256, 256, 3, (66, 66), {}),
    "valid strided": Case(conv_gemm, 2, 64, 128, 4, (34, 34), {"stride": 2, "act": "lrelu"}),
    "valid domains": Case(conv_gemm, 2, 12, 20, 5, (17, 31), {"act": "relu"}, groups=2),
    "up": Case(upsample_conv, 1, 256, 128, 5, (64, 64), {"pad_mode": "reflect"} | LN, AFFINE),
    "up domains": Case(upsample_conv, 4, 64, 32, 5, (16, 16), {"pad_mode": "reflect"} | IN, (), 2),
    "up odd": Case(upsample_conv, 2, 20, 12, 3, (9, 13), {"padding": 1, "act": "tanh"}),
    "transpose": Case(conv_transpose, 1, 256, 128, 3, (64, 64), TRANSPOSE | IN),
    "transpose domains": Case(conv_transpose, 4, 64, 32, 3, (16, 16), TRANSPOSE | LN, AFFINE, 2),
    "transpose odd": Case(conv_transpose, 2, 20, 12, 4, (9, 13), LRELU),
}
EACH_OP = ("residual", "valid strided", "up domains", "transpose")


def padded(x, padding, mode):
    return F.pad(x, (padding,) * 4, mode="constant" if mode == "zero" else mode)


def by_group(convolve, x, w, b, **options):
    if w.dim() == 4:
        return convolve(x, w, b, **options)
    parts = zip(x.chunk(len(w)), w, b, strict=True)
    return torch.cat([convolve(*part, **options) for part in parts])


def per_sample(parameter, y):
    """Return a parameter [C] or [G, C] as [1 or N, C, 1, 1]."""
    rows = parameter if parameter.dim() == 2 else parameter[None]
    return rows.repeat_interleave(len(y) // len(rows), 0)[..., None, None]


def eager_tail(y, norm="none", gamma=None, beta=None, act="none", slope=0.2, residual=None,
               halo=0, halo_mode="zero"):  # fmt: skip
    if norm == "in":
        y = F.instance_norm(y)
    elif norm == "ln":
        std, mean = torch.std_mean(y, (1, 2, 3), keepdim=True)
        y = (y - mean) / (std + 1e-5)
    if gamma is not None:
        y = y * per_sample(gamma, y) + per_sample(beta, y)
    if act in ("lrelu", "prelu"):
        y = F.prelu(y, slope) if act == "prelu" else F.leaky_relu(y, slope)
    elif act != "none":
        y = {"relu": F.relu, "selu": F.selu, "tanh": torch.tanh}[act](y)
    return padded(y if residual is None else y + residual, halo, halo_mode)


def eager_conv(x, w, b, stride=1, padding=0, pad_mode="zero", **tail):
    return eager_tail(by_group(F.conv2d, padded(x, padding, pad_mode), w, b, stride=stride), **tail)


def eager_upsample(x, w, b, padding=2, pad_mode="zero", **tail):
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    return eager_conv(large, w, b, padding=padding, pad_mode=pad_mode, **tail)


def eager_transpose(x, w, b, stride=2, padding=0, output_padding=0, **tail):
    where = {"stride": stride, "padding": padding, "output_padding": output_padding}
    return eager_tail(by_group(F.conv_transpose2d, x, w, b, **where), **tail)


EAGER = {
    conv_gemm: eager_conv,
    conv_norm_act: eager_conv,
    upsample_conv: eager_upsample,
    conv_transpose: eager_transpose,
}


def make(case, dtype, mean=0.0):
    """Return the tensors of a block by name, and a gradient of its result."""
    lead = (case.groups,) if case.groups else ()
    channels = (case.c, case.k) if case.op is conv_transpose else (case.k, case.c)
    shapes = {
        "x": (case.n, case.c, *case.size),
        "w": (*lead, *channels, case.taps, case.taps),
        **dict.fromkeys(("b", *AFFINE), (*lead, case.k)),
        "slope": (1,),
        "residual": (case.n, case.k, *case.size),
    }
    names = ("x", "w", "b", *case.extras)
    tensors = {name: torch.randn(shapes[name], device="cuda") for name in names}
    tensors["x"] = (tensors["x"] + mean).to(memory_format=torch.channels_last)
    tensors["w"] /= case.c**0.5 * case.taps
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    return tensors, upstream(case, tensors).to(dtype)


def upstream(case, tensors):
    """Return a random gradient that vanishes near the activation's kink.

    There rounding decides on which side a value lies, and its gradient differs by its all.
    """
    given = {n: t.double() for n, t in tensors.items() if n not in ("slope", "residual")}
    linear = {n: v for n, v in case.options.items() if n not in ("act", "halo", "halo_mode")}
    smooth = (EAGER[case.op](**given, **linear).abs() > KINK).double()
    smooth = padded(smooth, case.options.get("halo", 0), case.options.get("halo_mode", "zero"))
    return (torch.randn_like(smooth) * smooth).to(memory_format=torch.channels_last)


def run(f, dtype, tensors, dy, **options):
    """Return the result and every gradient, computed in dtype, by name."""
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}
    y = f(**leaves, **options)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))
    return {"y": y.detach(), **{f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}}


def ours(case, tensors, dy, op=None, impl="triton"):
    return run(op or case.op, dy.dtype, tensors, dy, **case.options, impl=impl)


def assert_same_bits(found, wanted):
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def off(found, wanted, name):
    return (found[name].double() - wanted[name].double()).norm()


def assert_as_accurate(case, tensors, dy, precision, names=None):
    """Require twice eager PyTorch's error at most, of the result and each gradient, or `names`."""
    eager, dtype = EAGER[case.op], PRECISIONS[precision][0]
    exact = run(eager, torch.float64, tensors, dy, **case.options)
    theirs = [run(eager, dtype, tensors, dy, **case.options)]
    if precision == "tf32":  # cuDNN may decline it for a layer; fp16 has as many bits
        theirs.append(run(eager, torch.float16, tensors, dy, **case.options))
    mine = ours(case, tensors, dy)
    assert mine["y"].is_contiguous(memory_format=torch.channels_last)
    for name in names or exact:
        floor = FLOORS[precision] * exact[name].norm()
        limit = 2 * max(off(t, exact, name) for t in theirs) + floor
        assert mine[name].shape == exact[name].shape
        assert off(mine, exact, name) <= limit, name


@pytest.fixture(params=PRECISIONS)
def precision(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", PRECISIONS[request.param][1])
    return request.param


@pytest.mark.parametrize("name", CASES)
def test_is_as_accurate_as_eager_pytorch(name, precision):
    tensors, dy = make(CASES[name], PRECISIONS[precision][0])
    assert_as_accurate(CASES[name], tensors, dy, precision)


@pytest.mark.parametrize("norm", ["in", "ln"])
def test_a_mean_of_a_thousand_spreads(norm, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    case = Case(conv_norm_act, 2, 8, 64, 1, (33, 65), {"norm": norm, "act": "relu"}, AFFINE)
    tensors, dy = make(case, torch.float32, mean=1000.0)
    # dw multiplies x by a gradient that sums to zero: its rounding is as large as itself.
    assert_as_accurate(case, tensors, dy, "fp32", names=("y", "dx", "dgamma", "dbeta"))


@pytest.mark.parametrize("name", CASES)
def test_the_strides_of_the_inputs_do_not_matter(name):
    tensors, dy = make(CASES[name], torch.bfloat16)
    wanted = ours(CASES[name], tensors, dy)
    nchw = {name: t.contiguous() for name, t in tensors.items()}
    assert_same_bits(ours(CASES[name], nchw, dy.contiguous()), wanted)
    view = tensors["x"].repeat_interleave(2, 3)[..., ::2]
    assert_same_bits(ours(CASES[name], tensors | {"x": view}, dy), wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_same_inputs_give_the_same_bits(name):
    tensors, dy = make(CASES[name], torch.bfloat16)
    wanted = ours(CASES[name], tensors, dy)
    assert_same_bits(ours(CASES[name], tensors, dy), wanted)


@pytest.mark.parametrize("name", EACH_OP)
def test_a_cuda_graph_replays_forward_and_backward(name):
    case = CASES[name]
    tensors, dy = make(case, torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ours(case, tensors, dy)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours(case, tensors, dy)
    for _ in range(2):
        for value in (*tensors.values(), dy):
            value.copy_(torch.randn_like(value))
        graph.replay()
        assert_same_bits(captured, ours(case, tensors, dy))


@pytest.mark.parametrize("name", EACH_OP)
def test_auto_means_triton_and_compiles_into_one_graph(name):
    case = CASES[name]
    tensors, dy = make(case, torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(case.op, fullgraph=True)
    assert_same_bits(ours(case, tensors, dy, compiled, "auto"), ours(case, tensors, dy))


def assert_tiles_agree(found, wanted):
    # Sums in another order, then rounded: a small share of the values, by one step of bf16.
    for name, value in wanted.items():
        assert off(found, wanted, name) <= 2**-9 * value.double().norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "first"])
def test_every_tile_computes_the_same(name, monkeypatch):
    tensors, dy = make(CASES[name], torch.bfloat16)
    wanted = ours(CASES[name], tensors, dy)
    for index in range(len(REGISTERS)):

        def other(product, index=index):
            found = tiles.candidates(product)
            return found[index * len(found) // len(REGISTERS)]

        monkeypatch.setattr(tiles, "best", other)
        assert_tiles_agree(ours(CASES[name], tensors, dy), wanted)
