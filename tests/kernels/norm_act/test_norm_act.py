"""norm_act in plain PyTorch: halos, grouped parameters, gradients, registration, errors."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels.norm_act.op import (
    NormActOptions,
    norm_act,
    norm_act_aten,
    norm_act_backward_aten,
)

NORMS = ("none", "in", "ln")
ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")
MODES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
EPS, SLOPE = 1e-3, 0.15


def rand(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def reference(x, gamma, beta, slope, residual, norm, act, halo=0, pad_mode="zero", eps=EPS):
    """Return the formula, from PyTorch's own operations."""

    def plane(parameter):  # one row for a group of consecutive samples
        rows = parameter.reshape(-1, x.shape[1])
        return rows.repeat_interleave(x.shape[0] // len(rows), 0)[..., None, None]

    if norm == "in":
        x = F.instance_norm(x, eps=eps)
    elif norm == "ln":
        std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
        x = (x - mean) / (std + eps)
    x = x * plane(gamma) + plane(beta)
    y = {
        "none": lambda: x,
        "relu": lambda: F.relu(x),
        "lrelu": lambda: F.leaky_relu(x, SLOPE),
        "prelu": lambda: F.prelu(x, slope),
        "selu": lambda: F.selu(x),
        "tanh": lambda: x.tanh(),
    }[act]()
    return F.pad(y + residual, (halo,) * 4, mode=MODES[pad_mode])


def mine(x, gamma, beta, slope, residual, norm, act, halo=0, pad_mode="zero", eps=EPS):
    slope = slope if act == "prelu" else SLOPE
    return norm_act(
        x, norm=norm, gamma=gamma, beta=beta, eps=eps, act=act, slope=slope, residual=residual,
        halo=halo, pad_mode=pad_mode,
    )  # fmt: skip


def gradients(y, inputs, dy):
    return torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("halo", "pad_mode"), [(0, "zero"), (2, "zero"), (3, "reflect"), (4, "replicate")]
)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
def test_equals_its_formula_with_grouped_parameters_and_a_halo(
    act, norm, halo, pad_mode, memory_format
):
    x, residual = (rand(4, 3, 4, 6).contiguous(memory_format=memory_format) for _ in range(2))
    inputs = (x, rand(2, 3), rand(4, 3), rand(3), residual)
    y = mine(*inputs, norm, act, halo, pad_mode)
    wanted = reference(*inputs, norm, act, halo, pad_mode)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-10)
    dy = torch.randn_like(y)
    found, expected = gradients(y, inputs, dy), gradients(wanted, inputs, dy)
    names = ("x", "gamma", "beta", "slope", "residual")
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ["prelu", "selu", "tanh"])
def test_gradcheck(norm, act):
    inputs = (rand(2, 3, 3, 4), rand(2, 3), rand(3), rand(1), rand(2, 3, 3, 4))

    def run(x, gamma, beta, slope, residual):  # the unused slope still counts as an input
        y = mine(x, gamma, beta, slope, residual, norm, act, 1, "reflect")
        return y if act == "prelu" else y + slope

    assert torch.autograd.gradcheck(run, inputs)


def test_parameters_of_another_dtype_get_gradients_of_their_own():
    x, residual = (rand(2, 4, 5, 6, dtype=torch.bfloat16) for _ in range(2))
    gamma, beta, slope = rand(4, dtype=torch.float32), rand(2, 4).bfloat16(), rand(1).float()
    y = mine(x, gamma, beta, slope, residual, "in", "prelu", 1)
    inputs = (x, gamma, beta, slope, residual)
    assert y.dtype == torch.bfloat16
    found = gradients(y, inputs, torch.ones_like(y))
    assert [g.dtype for g in found] == [v.dtype for v in inputs]
    assert [g.shape for g in found] == [v.shape for v in inputs]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["in", "ln"])
def test_half_precision_is_as_accurate_as_eager_pytorch(norm, dtype):
    x = (torch.randn(2, 8, 17, 31) * 2 + 1).to(dtype)
    dy = torch.randn(2, 8, 17, 31).to(dtype)

    def run(f, dtype):
        leaf, one = x.to(dtype).requires_grad_(), torch.ones(8, dtype=dtype)
        y = f(leaf, one, one * 0, one, torch.zeros_like(leaf), norm, "lrelu", eps=1e-5)
        return y.double(), torch.autograd.grad(y, leaf, dy.to(dtype))[0].double()

    exact = run(reference, torch.float64)
    for name, e, m, t in zip(
        ("y", "dx"), exact, run(mine, dtype), run(reference, dtype), strict=True
    ):
        assert (m - e).abs().max() <= 2 * (t - e).abs().max() + 1e-6, name


def test_a_layer_norm_without_spread_has_finite_gradients():
    x = torch.full((2, 3, 4, 4), 0.25, requires_grad=True)
    y = norm_act(x, norm="ln")
    dy = torch.randn_like(y)
    dx = torch.autograd.grad(y, x, dy)[0]
    wanted = (dy - dy.mean((1, 2, 3), keepdim=True)) / 1e-5  # the spread's own gradient is 0
    torch.testing.assert_close(dx, wanted, rtol=1e-4, atol=1)


def test_saves_the_input_and_the_statistics_only():
    x, residual = rand(2, 8, 16, 16, dtype=torch.float32), rand(2, 8, 16, 16, dtype=torch.float32)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t
    ):
        norm_act(x, norm="in", act="selu", residual=residual, halo=1, pad_mode="reflect")
    assert sum(t.numel() for t in saved.values()) <= x.numel() + 2 * 2 * 8
    assert x.data_ptr() in saved


def test_nothing_to_do_returns_the_input():
    x = rand(1, 2, 3, 4)
    assert norm_act(x) is x
    assert norm_act(x, norm="in") is not x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pad_mode", MODES)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(norm, pad_mode):
    inputs = (rand(0, 3, 4, 5), rand(3), rand(3), rand(1), rand(0, 3, 4, 5))
    y = mine(*inputs, norm, "prelu", 1, pad_mode)
    assert y.shape == (0, 3, 6, 7)
    dx, *parameters, dresidual = gradients(y, inputs, torch.ones_like(y))
    assert dx.shape == dresidual.shape == (0, 3, 4, 5)
    assert not any(g.any() for g in parameters)


def test_sliced_views_and_gradients_of_any_strides():
    base, dy = rand(3, 9, 20, 14), torch.randn(14, 8, 4, 2).double().permute(3, 2, 1, 0)
    parameters = rand(4), rand(4), rand(1)
    for view in (base[1:, 1:8:2, ::4, 1:-1], base[1:, :4, :12, 3:8].transpose(2, 3)):
        residual = base[1:, 5:, : view.shape[2], : view.shape[3]]
        shape = (view.shape[2] + 2, view.shape[3] + 2)
        dy_view = dy.repeat(1, 1, 2, 1)[:, :, : shape[0], : shape[1]]
        inputs = (view, *parameters, residual)
        y, wanted = (f(*inputs, "in", "lrelu", 1, "reflect") for f in (mine, reference))
        torch.testing.assert_close(y, wanted)
        found, expected = (gradients(result, inputs, dy_view) for result in (y, wanted))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_under_autocast_the_residual_is_cast():
    x, residual = rand(1, 2, 4, 4).bfloat16(), rand(1, 2, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm="in", residual=residual)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm_act(x, norm="in", residual=residual.bfloat16()))


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_changes_no_float32_result(norm):
    x, slope = rand(1, 3, 4, 4).float(), rand(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(x, norm=norm, act="prelu", slope=slope)
    assert torch.equal(y, norm_act(x, norm=norm, act="prelu", slope=slope))


@pytest.mark.parametrize("act", ["none", "relu", "lrelu", "selu", "tanh"])
def test_derivatives_from_the_result_are_those_from_the_input(act):
    pre, dy = rand(2, 3, 4, 5).detach(), rand(2, 3, 6, 7).detach()
    tail = NormActOptions("none", 0.0, act, SLOPE, 1, "reflect")
    y, mean, rstd = norm_act_aten(
        pre, None, None, None, None, NormActOptions("none", 0.0, act, SLOPE)
    )
    wanted = norm_act_backward_aten(dy, pre, mean, rstd, None, None, None, tail)
    found = norm_act_backward_aten(dy, y, mean, rstd, None, None, None, tail, from_output=True)
    torch.testing.assert_close(found.dx, wanted.dx)
    torch.testing.assert_close(found.dshift, found.dx.sum((2, 3)))
    nothing = norm_act_backward_aten(dy, pre, mean, rstd, None, None, None, tail, sums=False)
    assert nothing[1:] == (None,) * 5


def test_the_operators_are_registered_as_pytorch_wants_them():
    x, gamma, slope = rand(2, 3, 4, 5), rand(2, 3), rand(1)
    options = ("in", 1e-5, "prelu", 0.0, 1, "reflect", "aten")
    torch.library.opcheck(
        torch.ops.fastunit.norm_act, (x, gamma, None, slope, rand(2, 3, 4, 5), *options)
    )
    x, dy, statistics = x.detach(), rand(2, 3, 6, 7).detach(), rand(2, 3).detach()
    arguments = (dy, x, statistics, statistics, gamma.detach(), None, slope.detach(), True, True)
    torch.library.opcheck(torch.ops.fastunit.norm_act_backward, (*arguments, *options))


def compiles(backend):
    torch._dynamo.reset()
    for norm, act in (("in", "prelu"), ("ln", "relu"), ("none", "lrelu")):
        inputs = (rand(2, 3, 8, 8), rand(3), rand(2, 3), rand(1), rand(2, 3, 8, 8))
        compiled = torch.compile(mine, fullgraph=True, backend=backend)
        y, wanted = (f(*inputs, norm, act, 1, "reflect") for f in (compiled, mine))
        torch.testing.assert_close(y, wanted)
        dy = torch.randn_like(y)
        for a, b in zip(gradients(y, inputs, dy), gradients(wanted, inputs, dy), strict=True):
            torch.testing.assert_close(a, b)


def test_compiles_into_one_graph_with_its_gradients():
    compiles("aot_eager")


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    compiles("inductor")


def test_a_second_derivative_is_refused():
    x = rand(1, 2, 3, 4)
    dx = torch.autograd.grad(norm_act(x, norm="in", act="tanh").sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once"):
        dx.sum().backward()


X = torch.ones(4, 3, 6, 5)
ERRORS = [
    (lambda: norm_act(X, gamma=torch.ones(3, 3)), ("gamma", "(3,)", "N=4", "(3, 3)")),
    (lambda: norm_act(X, beta=torch.ones(2, 4)), ("beta", "[G, 3]", "(2, 4)")),
    (lambda: norm_act(X, beta=torch.ones(0, 3)), ("beta", "(0, 3)")),
    (lambda: norm_act(X, gamma=torch.ones(3).double()), ("gamma", "float32", "float64")),
    (lambda: norm_act(X, act="prelu", slope=torch.ones(1).half()), ("slope", "float16")),
    (lambda: norm_act(X, residual=X.double()), ("residual", "float64", "float32")),
    (lambda: norm_act(X, halo=-1), ("-1", "negative")),
    (lambda: norm_act(X, halo=1, pad_mode="same"), ("pad_mode='same'", "zero, reflect")),
    (lambda: norm_act(X, halo=5, pad_mode="reflect"), ("reflect", "5", "6x5")),
    (lambda: norm_act(X, impl="cuda"), ("impl='cuda'", "auto, triton, aten")),
    (lambda: norm_act(X, norm="in", impl="triton"), ("impl='triton'", "CUDA", "cpu")),
]


@pytest.mark.parametrize(("call", "parts"), ERRORS, ids=[" ".join(parts) for _, parts in ERRORS])
def test_a_wrong_argument_is_named(call, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        call()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("act", ["none", "relu", "lrelu", "selu", "tanh"])
def test_the_gradient_of_one_image_is_that_of_each_of_two(act, memory_format):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    dy = torch.randn(2, 3, 8, 7, dtype=torch.float64)

    def gradient(x, dy):
        leaf = x.clone().requires_grad_()
        y = norm_act(leaf, norm="in", act=act, slope=0.3, halo=1, pad_mode="reflect")
        return torch.autograd.grad(y, leaf, dy)[0]

    both = gradient(x, dy)
    for i in range(2):
        alone = gradient(x[i : i + 1], dy[i : i + 1])
        assert torch.allclose(alone[0], both[i], rtol=1e-11, atol=1e-12)
