"""impl="auto" has every derivative and takes every transform, by the plain composition."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    instance_norm_act,
    noise_state,
    norm_act,
    reparameterize,
    upsample_conv,
)
from fastunit.kernels.common.runtime import default_impl
from fastunit.kernels.conv import plain as conv_plain
from fastunit.kernels.norm_act import plain as norm_plain
from tests.support.tensors import rand


@pytest.fixture(autouse=True)
def _auto():
    with default_impl("auto"):
        yield


@pytest.fixture(params=["small", "operators"])
def size(request, monkeypatch):
    """Let tests run as for small images, which are composed, and as for large ones."""
    if request.param == "operators":
        monkeypatch.setattr(conv_plain, "SMALL", 0)
        monkeypatch.setattr(norm_plain, "SMALL", 0)
    return request.param


X, W, B = rand(2, 2, 4, 3), rand(3, 2, 3, 3), rand(3)
AFFINE = {"gamma": rand(3), "beta": rand(3)}
REFLECT = {"padding": 1, "pad_mode": "reflect"}
CALLS = {
    "conv, in": (
        lambda **t: conv_norm_act(**t, **REFLECT, norm="in", act="tanh"),
        {"x": X, "w": W, "b": B, **AFFINE, "residual": rand(2, 3, 4, 3)},
    ),
    "conv, ln, halo": (
        lambda **t: conv_norm_act(
            **t, padding=1, norm="ln", act="prelu", halo=1, halo_mode="reflect"
        ),
        {"x": X, "w": W, **AFFINE, "slope": rand(3).abs(), "residual": rand(2, 3, 4, 3)},
    ),
    "conv, groups": (
        lambda **t: conv_norm_act(**t, **REFLECT, stride=2, act="selu"),
        {"x": X, "w": rand(2, 3, 2, 3, 3), "b": rand(2, 3)},
    ),
    "gemm": (lambda **t: conv_gemm(**t, act="tanh"), {"x": X, "w": W, "b": B}),
    "transpose": (
        lambda **t: conv_transpose(**t, padding=1, output_padding=1, norm="in", act="selu"),
        {"x": X, "w": rand(2, 3, 3, 3), "b": B, **AFFINE},
    ),
    "upsample": (
        lambda **t: upsample_conv(**t, padding=1, pad_mode="reflect", norm="ln", act="tanh"),
        {"x": X, "w": W, "b": B, **AFFINE},
    ),
    "norm_act": (
        lambda **t: norm_act(**t, norm="in", act="tanh", halo=1, pad_mode="replicate"),
        {"x": rand(2, 3, 4, 3), **AFFINE, "residual": rand(2, 3, 4, 3)},
    ),
    "instance_norm_act": (
        lambda **t: instance_norm_act(**t, act="selu"),
        {"x": rand(2, 3, 4, 3), "weight": B, "bias": B + 1},
    ),
    "reparameterize": (
        lambda **t: torch.cat([part.flatten() for part in reparameterize(**t, **SIGMA)]),
        {"mu": X, "raw_sigma": rand(2, 2, 4, 3)},
    ),
}
SIGMA = {"sigma": "softplus", "kl": "normal", "noise": torch.linspace(-1, 1, 48).view(X.shape)}
every_call = pytest.mark.parametrize("name", CALLS)


def made(name, leaves=False):
    """Return an operation as a function of its tensors, and these."""
    call, tensors = CALLS[name]
    values = tuple(t.clone().requires_grad_(leaves) for t in tensors.values())
    return lambda *values: call(**dict(zip(tensors, values, strict=True))), values


def close(found, wanted, limit=1e-9):
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).abs().max() <= limit * (1 + other.abs().max())


def first_derivatives(f, values):
    leaves = tuple(value.clone().requires_grad_() for value in values)
    return torch.autograd.grad(f(*leaves).square().sum(), leaves)


def slope(f, values, tangents, step=1e-6):
    """Return the derivative along the tangents, by finite differences."""
    ahead, behind = (
        f(*(v + sign * step * t for v, t in zip(values, tangents, strict=True))) for sign in (1, -1)
    )
    return (ahead - behind) / (2 * step)


@every_call
def test_second_derivatives_are_right(name, size):
    f, values = made(name, leaves=True)
    assert torch.autograd.gradgradcheck(f, values)


@every_call
def test_a_graph_of_gradients_leaves_them_as_they_are(name, size):
    f, values = made(name, leaves=True)
    y = f(*values)
    dy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    once = torch.autograd.grad(y, values, dy, retain_graph=True)
    close(torch.autograd.grad(y, values, dy, create_graph=True), once, 1e-11)


@every_call
def test_forward_mode_agrees_with_finite_differences(name, size):
    f, values = made(name)
    tangents = tuple(torch.randn_like(value) for value in values)
    wanted = slope(f, values, tangents)
    found = torch.func.jvp(f, values, tangents)[1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(values, tangents, strict=True)]
        dual = forward_ad.unpack_dual(f(*duals)).tangent
    close((found, dual), (wanted, wanted), 1e-6)


@every_call
def test_the_gradient_of_a_tangent(name, size):
    f, values = made(name)
    tangents = tuple(torch.randn_like(value) for value in values)

    def length(*values):
        return torch.func.jvp(f, values, tangents)[1].square().sum()

    gradients = torch.func.grad(length, tuple(range(len(values))))(*values)
    found = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    close((found,), (slope(length, values, tangents),), 1e-6)


# Of transposed convolutions with output padding PyTorch has two derivatives.
@pytest.mark.parametrize("name", [name for name in CALLS if name != "transpose"])
def test_third_derivatives_agree_with_finite_differences(name, size):
    f, values = made(name)
    tangents = tuple(torch.randn_like(value) for value in values)

    def along(y, leaves):
        gradients = torch.autograd.grad(y, leaves, create_graph=True)
        return sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))

    def second(*values):
        leaves = tuple(value.clone().requires_grad_() for value in values)
        return along(along(f(*leaves).square().sum(), leaves), leaves), leaves

    found = along(*second(*values)).detach()
    wanted = slope(lambda *values: second(*values)[0].detach(), values, tangents)
    close((found,), (wanted,), 1e-5)


@every_call
def test_a_tangent_of_the_gradient_alone_is_followed(name, size):
    f, values = made(name, leaves=True)
    y = f(*values)
    dy, tangent = torch.randn_like(y), torch.randn_like(y)
    wanted = torch.autograd.grad(y, values, tangent, retain_graph=True)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, values, forward_ad.make_dual(dy, tangent))
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in found]
    # None stands for a tangent of zeros.
    pairs = zip(tangents, wanted, strict=True)
    close([torch.zeros_like(w) if t is None else t for t, w in pairs], wanted)


@every_call
def test_the_gradients_of_torch_func(name, size):
    f, values = made(name)
    places = tuple(range(len(values)))
    wanted = first_derivatives(f, values)
    close(torch.func.grad(lambda *v: f(*v).square().sum(), places)(*values), wanted)
    y, back = torch.func.vjp(f, *values)
    close(back(2 * y), wanted)
    rows = torch.func.jacrev(f, places)(*values)
    pairs = zip(rows, values, strict=True)
    close([(2 * y.flatten() @ r.reshape(y.numel(), -1)).view(v.shape) for r, v in pairs], wanted)


@pytest.mark.parametrize("dim", [0, -1])
@every_call
def test_vmap_and_gradients_per_sample(name, size, dim):
    f, values = made(name)
    several = [torch.stack([v, 2 * v, -v], dim) for v in values]
    parts = list(zip(*(v.unbind(dim) for v in several), strict=True))
    found = torch.func.vmap(f, in_dims=dim)(*several)
    close(found, [f(*part) for part in parts])
    per_sample = torch.func.vmap(
        torch.func.grad(lambda *v: f(*v).square().sum(), tuple(range(len(values)))), in_dims=dim
    )(*several)
    wanted = zip(*(first_derivatives(f, part) for part in parts), strict=True)
    close(per_sample, [torch.stack(each) for each in wanted])


@every_call
def test_a_hessian(name, size):
    f, (x, *others) = made(name)
    loss = lambda x: f(x, *others).square().sum()  # noqa: E731
    wanted = torch.autograd.functional.hessian(loss, x)
    close([torch.func.hessian(loss)(x)], [wanted], 1e-8)


@every_call
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_transforms_inside_compiled_code(name, transform):
    torch._dynamo.reset()
    f, (x, *others) = made(name)

    def run(x):
        if transform == "grad":
            return torch.func.grad(lambda x: f(x, *others).square().sum())(x)
        if transform == "jvp":
            return torch.func.jvp(lambda x: f(x, *others), (x,), (x,))[1]
        return torch.func.vmap(lambda x: f(x, *others))(torch.stack([x, 2 * x]))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    close([compiled(x)], [run(x)])


@pytest.mark.parametrize("name", ["conv, in", "upsample", "norm_act"])
def test_transforms_around_compiled_code(name):
    torch._dynamo.reset()
    f, (x, *others) = made(name)
    loss = lambda x: f(x, *others).square().sum()  # noqa: E731
    compiled = torch.compile(loss, backend="eager")
    compiled(x)  # a form without the transform comes first
    for transform in (torch.func.grad, torch.func.jacfwd):
        close([transform(compiled)(x)], [transform(loss)(x)])


def test_a_graph_of_gradients_under_a_mode_is_refused_by_name():
    f, values = made("conv, in", leaves=True)
    with FlopCounterMode(display=False):
        (dx,) = torch.autograd.grad(f(*values).square().sum(), values[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r'conv_norm_act.*impl="plain" everywhere'):
        dx.sum().backward()


def test_the_input_is_not_kept_for_second_derivatives(monkeypatch):
    monkeypatch.setattr(conv_plain, "SMALL", 0)
    x = (X * 1).requires_grad_()
    y = conv_norm_act(middle := x * 2, W, **REFLECT, norm="in", impl="auto")
    memory = weakref.ref(middle)
    del middle
    assert memory() is None
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), x)[0].abs().max() > 0


@pytest.mark.parametrize("given", ["nothing", "a state"])
def test_noise_is_drawn_under_transforms(given):
    mu, state = rand(3, 2, 4, 5, 3), noise_state(5)
    source = {"state": state} if given == "a state" else {}
    for dim in (0, -1):
        sample = torch.func.vmap(
            lambda mu: reparameterize(mu, **source)[0], in_dims=dim, randomness="different"
        )
        z = sample(mu)
        noise = z - mu.movedim(dim, 0)
        assert 0.7 < noise.std() < 1.3
        assert torch.allclose(noise[0], noise[1]) == (given == "a state")
