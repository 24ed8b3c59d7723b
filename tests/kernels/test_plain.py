"""impl="plain": the values of the operators, and the derivatives that these do not have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    instance_norm_act,
    norm_act,
    reparameterize,
    upsample_conv,
)
from fastunit.kernels.common import runtime
from fastunit.kernels.conv.plain import SMALL


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def block(groups: int = 0, transposed: bool = False, affine: bool = True) -> dict[str, Tensor]:
    lead = (groups,) if groups else ()
    filters = (*lead, 2, 3, 3, 3) if transposed else (*lead, 3, 2, 3, 3)
    given = {"x": leaf(2, 2, 4, 3), "w": leaf(*filters), "b": leaf(*lead, 3)}
    return given | ({"gamma": leaf(*lead, 3), "beta": leaf(*lead, 3)} if affine else {})


REFLECT = {"padding": 1, "pad_mode": "reflect"}
CASES = {
    "conv_gemm": (conv_gemm, block, {"affine": False}, {"act": "selu"}),
    "conv, in": (conv_norm_act, block, {}, REFLECT | {"norm": "in", "act": "tanh"}),
    "conv, in, groups": (conv_norm_act, block, {"groups": 2}, REFLECT | {"norm": "in"}),
    "conv, ln, halo": (
        conv_norm_act,
        block,
        {},
        {"padding": 1, "stride": 2, "norm": "ln", "act": "selu", "halo": 1, "halo_mode": "reflect"},
    ),
    "conv, replicate": (
        conv_norm_act,
        block,
        {"affine": False},
        {"padding": 2, "pad_mode": "replicate", "act": "lrelu", "slope": 0.3},
    ),
    "upsample, ln": (
        upsample_conv,
        block,
        {"groups": 2},
        {"padding": 2, "pad_mode": "reflect", "norm": "ln", "act": "tanh"},
    ),
    "transpose, in": (
        conv_transpose,
        block,
        {"transposed": True},
        {"stride": 2, "padding": 1, "output_padding": 1, "norm": "in", "act": "tanh"},
    ),
    "norm_act, in": (
        norm_act,
        lambda: {"x": leaf(2, 3, 3, 2), "gamma": leaf(2, 3), "residual": leaf(2, 3, 3, 2)},
        {},
        {"norm": "in", "act": "selu", "halo": 1, "pad_mode": "replicate"},
    ),
    "norm_act, prelu": (
        norm_act,
        lambda: {"x": leaf(2, 3, 3, 2), "slope": leaf(3)},
        {},
        {"norm": "ln", "act": "prelu"},
    ),
    "instance_norm_act": (
        instance_norm_act,
        lambda: {"x": leaf(2, 3, 3, 2), "weight": leaf(3), "bias": leaf(3)},
        {},
        {"act": "tanh"},
    ),
    "reparameterize": (
        lambda **given: torch.cat([part.flatten() for part in reparameterize(**given)]),
        lambda: {"mu": leaf(2, 3), "raw_sigma": leaf(2, 3)},
        {},
        {"sigma": "softplus", "kl": "normal", "noise": torch.ones(2, 3, dtype=torch.float64)},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


def made(case: str):
    """Return the tensors of a case by name, and the operation as a function of their values."""
    op, make, shapes, options = CASES[case]
    given = make(**shapes)

    def run(*values: Tensor, impl: str = "plain") -> Tensor:
        return op(**dict(zip(given, values, strict=True)), **options, impl=impl)

    return given, run


def results(run, given: dict[str, Tensor], impl: str) -> tuple[Tensor, ...]:
    y = run(*given.values(), impl=impl)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return y, *torch.autograd.grad(y, list(given.values()), weights)


@every_case
def test_it_computes_what_the_operator_does(case):
    given, run = made(case)
    plain, operator = (results(run, given, impl) for impl in ("plain", "aten"))
    for mine, other in zip(plain, operator, strict=True):
        assert (mine - other).abs().max() <= 1e-11 * (1 + other.abs().max())


def strided(x: Tensor, how: str) -> Tensor:
    """Return x with other strides: in channels_last, or as a view of tokens [N, H * W, C]."""
    if how == "contiguous":
        return x.contiguous()
    if how == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    tokens = x.flatten(2).transpose(1, 2).contiguous()
    return tokens.transpose(1, 2).reshape(x.shape)


LAYOUTS = ("contiguous", "channels_last", "tokens")


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("impl", ["auto", "plain", "aten"])
@pytest.mark.parametrize("op", [norm_act, instance_norm_act, conv_norm_act])
def test_no_memory_format_changes_a_gradient(op, impl, samples):
    """PyTorch's own batch norm of one image on a CPU fails this."""
    w = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    x, dy = (torch.randn(samples, c, 4, 7, dtype=torch.float64) for c in (5, 6))
    given = {"w": w, "padding": 1, "norm": "in"} if op is conv_norm_act else {}
    dy = dy if op is conv_norm_act else dy[:, :5]
    given |= {"norm": "in"} if op is norm_act else {}
    found = []
    for form in LAYOUTS:
        for of_gradient in LAYOUTS:
            leaf = strided(x, form).detach().requires_grad_()
            with runtime.default_impl("auto"):
                y = op(leaf, **given, act="selu", impl=impl)
            found.append(torch.autograd.grad(y, leaf, strided(dy, of_gradient))[0])
    assert all(torch.allclose(gradient, found[0], rtol=1e-9, atol=1e-10) for gradient in found)


@every_case
def test_auto_computes_what_the_operator_does(case):
    given, run = made(case)
    with runtime.default_impl("auto"):
        found = results(run, given, "auto")
    for mine, other in zip(found, results(run, given, "aten"), strict=True):
        assert (mine - other).abs().max() <= 1e-11 * (1 + other.abs().max())


@every_case
def test_a_default_of_plain_has_all_derivatives(case):
    given, run = made(case)
    values = tuple(value.detach() for value in given.values())
    tangents = tuple(map(torch.ones_like, values))
    wanted = torch.func.jvp(run, values, tangents)
    with runtime.default_impl("plain"):
        found = torch.func.jvp(lambda *values: run(*values, impl="auto"), values, tangents)
    assert all(map(torch.equal, found, wanted))


@every_case
def test_it_is_differentiable_twice_and_in_forward_mode(case):
    given, run = made(case)
    values = tuple(given.values())
    assert torch.autograd.gradcheck(run, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, values)


@every_case
def test_it_takes_the_transforms_of_torch_func(case):
    given, run = made(case)
    values = tuple(value.detach() for value in given.values())

    def loss(*values: Tensor) -> Tensor:
        return run(*values).square().sum()

    found = torch.func.grad(loss, argnums=tuple(range(len(values))))(*values)
    wanted = torch.autograd.grad(loss(*given.values()), list(given.values()))
    for mine, other in zip(found, wanted, strict=True):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-10)
    tangents = tuple(torch.ones_like(value) for value in values)
    slope = torch.func.jvp(loss, values, tangents)[1]
    assert torch.allclose(slope, sum(gradient.sum() for gradient in found))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("impl", ["plain", "aten", "auto"])
def test_a_bias_before_an_instance_norm_has_no_gradient(impl, alone):
    given = block(affine=False)
    if alone:  # nothing else has a gradient
        given |= {name: given[name].detach() for name in ("x", "w")}
    y = conv_norm_act(**given, **REFLECT, norm="in", act="relu", impl=impl)
    (gradient,) = torch.autograd.grad(y.square().sum(), given["b"])
    assert torch.equal(gradient, torch.zeros(3, dtype=torch.float64))
    given["b"] = torch.full((3,), float("inf"), dtype=torch.float64)
    assert torch.equal(conv_norm_act(**given, **REFLECT, norm="in", act="relu", impl=impl), y)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_instance_norm_keeps_the_memory_format(samples, memory_format, dtype):
    x = torch.randn(samples, 8, 5, 6, dtype=dtype).contiguous(memory_format=memory_format)
    y = norm_act(x.requires_grad_(), norm="in", act="relu", impl="plain")
    assert y.stride() == x.stride()
    dy = torch.randn(samples, 8, 5, 6, dtype=dtype)
    assert torch.autograd.grad(y, x, dy)[0].stride() == x.stride()


def test_a_state_draws_for_codes_that_are_not_dense():
    state = torch.tensor([3, 0])
    expanded = torch.zeros(1, 1, 4, 4).expand(3, 2, 4, 4)
    codes = (expanded, torch.zeros(3, 4, 4, 4)[:, ::2])
    found = [reparameterize(mu, state=state.clone(), impl="plain")[0] for mu in codes]
    wanted = reparameterize(torch.zeros(3, 2, 4, 4), state=state, impl="aten")[0]
    assert all(torch.equal(z, wanted) for z in found)


def test_half_precision_is_computed_in_float32():
    x, w = (torch.randn(2, 4, size, size, dtype=torch.bfloat16) for size in (8, 3))
    y = conv_norm_act(x, w, norm="in", act="selu", impl="plain")
    wanted = conv_norm_act(x, w, norm="in", act="selu", impl="aten")
    assert y.dtype == torch.bfloat16
    assert (y.float() - wanted.float()).abs().max() <= 2**-8 * wanted.float().abs().max()


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (2, 3, 1, 1)])
def test_images_of_no_samples_or_of_one_pixel(shape):
    x = torch.randn(shape)
    for impl in ("plain", "aten"):
        y = norm_act(x, norm="in", act="relu", impl=impl)
        rounding = torch.finfo(x.dtype).eps * x.abs().sum() / 1e-5**0.5  # eps under the root
        assert y.shape == shape and y.abs().sum() <= rounding


# ---- what "auto" takes


def operators_in(y: Tensor) -> bool:
    """Return whether an operation's own backward is in the graph of a result."""
    nodes, found = [y.grad_fn], False
    while nodes:
        node = nodes.pop()
        found |= type(node).__name__ == "_EagerBackward"
        nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return found


def auto(x: Tensor, w: Tensor, **options) -> bool:
    with runtime.default_impl("auto"):
        return operators_in(conv_norm_act(x, w.requires_grad_(), padding=1, **options))


def test_small_images_are_plain_and_others_are_not():
    w = torch.randn(4, 4, 3, 3)
    side = int((SMALL / 4) ** 0.5)
    assert not auto(torch.randn(1, 4, 8, 8), w, norm="in")
    assert not auto(torch.randn(1, 4, side, side), w)
    assert auto(torch.randn(1, 4, side, side + 1), w)
    assert auto(torch.randn(1, 128, 8, 8), torch.randn(256, 128, 3, 3))  # large filters
    assert auto(torch.randn(1, 4, 8, 8), w, norm="ln")
    assert auto(torch.randn(1, 4, 8, 8), w, impl="aten")


@pytest.mark.parametrize(("mode", "most"), [("zero", SMALL >> 4), ("reflect", SMALL >> 3)])
def test_small_images_are_enlarged_before_the_convolution(mode, most):
    w, channels = torch.randn(4, 32, 5, 5, requires_grad=True), 32
    for rows, composed in ((most // channels // 8, True), (most // channels // 8 + 1, False)):
        x = torch.randn(1, channels, rows, 8)
        with runtime.default_impl("auto"):
            y = upsample_conv(x, w, padding=2, pad_mode=mode)
        assert operators_in(y) is not composed
        wanted = upsample_conv(x, w, padding=2, pad_mode=mode, impl="aten")
        torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-3)


def test_a_default_implementation_is_not_overruled():
    x, w = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3, requires_grad=True)
    for impl, wanted in (("aten", True), ("plain", False)):
        with runtime.default_impl(impl):
            assert operators_in(conv_norm_act(x, w, norm="in")) is wanted


def test_a_gpu_and_the_compiler_do_not_ask_for_plain():
    x, w = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    assert auto(x.to("meta"), w.to("meta"), norm="in")
    traced = []

    def backend(graph, inputs):
        traced.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with runtime.default_impl("auto"):
        torch.compile(conv_norm_act, backend=backend, fullgraph=True)(x, w, norm="in")
    assert "fastunit.conv_block.default" in traced
