"""Derivatives that the operations do not have are refused by name, never zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    instance_norm_act,
    norm_act,
    reparameterize,
    upsample_conv,
)
from tests.support.tensors import rand

X, W, B, C = rand(2, 3, 6, 6), rand(4, 3, 3, 3), rand(4), rand(4).abs()
AFFINE = {"gamma": rand(4), "beta": rand(4)}

# Each operation as a function of keyword tensors, and the tensors that can carry a tangent.
CALLS = {
    "conv_norm_act": (
        lambda **t: conv_norm_act(**t, padding=1, norm="in", act="prelu"),
        {"x": X, "w": W, "b": B, **AFFINE, "slope": C, "residual": rand(2, 4, 6, 6)},
    ),
    "conv_gemm": (conv_gemm, {"x": X, "w": W, "b": B}),
    "conv_transpose": (
        lambda **t: conv_transpose(**t, norm="ln", act="prelu"),
        {"x": X, "w": rand(3, 4, 2, 2), "b": B, **AFFINE, "slope": C}
        | {"residual": rand(2, 4, 12, 12)},
    ),
    "upsample_conv": (
        lambda **t: upsample_conv(**t, padding=1, norm="in", act="prelu"),
        {"x": X, "w": W, "b": B, **AFFINE, "slope": C},
    ),
    "norm_act": (
        lambda **t: norm_act(**t, norm="ln", act="prelu"),
        {"x": rand(2, 4, 6, 6), **AFFINE, "slope": C, "residual": rand(2, 4, 6, 6)},
    ),
    "instance_norm_act": (
        lambda **t: instance_norm_act(**t, act="prelu"),
        {"x": rand(2, 4, 6, 6), "weight": B, "bias": B, "slope": C}
        | {"residual": rand(2, 4, 6, 6)},
    ),
    "reparameterize": (
        lambda **t: reparameterize(**t, sigma="softplus", kl="normal")[0],
        {"mu": X, "raw_sigma": rand(2, 3, 6, 6), "noise": rand(2, 3, 6, 6)},
    ),
}
ARGUMENTS = [(name, argument) for name, (_, tensors) in CALLS.items() for argument in tensors]
LEARNT = [pair for pair in ARGUMENTS if pair[1] != "noise"]  # noise may not ask for a gradient


def function(name, argument):
    """Return an operation as a function of one of its tensors, and that tensor."""
    call, tensors = CALLS[name]
    return lambda value: call(**(tensors | {argument: value})), tensors[argument]


def dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


FORWARD = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f, randomness="different")(x),
    "linearize": torch.func.linearize,
    "dual": dual,
    "over vmap": lambda f, x: torch.func.jvp(
        torch.func.vmap(f, randomness="different"), (x[None],), (x[None],)
    ),
    "over grad": lambda f, x: torch.func.jvp(
        lambda x: torch.func.grad(lambda s: s * f(x).sum())(rand()), (x,), (x,)
    ),
    "twice": lambda f, x: torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (x,))[1], (x,), (x,)),
}
REVERSE = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "vjp": torch.func.vjp,
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "per sample": lambda f, x: torch.func.vmap(
        torch.func.grad(lambda x: f(x).sum()), randomness="different"
    )(x[None]),
}


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
@pytest.mark.parametrize("way", FORWARD)
def test_forward_mode_is_refused_by_name(way, name, argument):
    with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode"):
        FORWARD[way](*function(name, argument))


@pytest.mark.parametrize(("name", "argument"), LEARNT)
def test_forward_mode_of_what_is_learnt_is_refused_by_name(name, argument):
    f, x = function(name, argument)
    with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode"):
        dual(f, x.clone().requires_grad_())


@pytest.mark.parametrize(("name", "argument"), LEARNT)
@pytest.mark.parametrize("way", REVERSE)
def test_gradients_of_torch_func_are_refused_by_name(way, name, argument):
    with pytest.raises(NotImplementedError, match=f"{name} cannot be differentiated by torch.func"):
        REVERSE[way](*function(name, argument))


@pytest.mark.parametrize("name", CALLS)
def test_a_second_derivative_is_refused_by_name(name):
    f, x = function(name, next(iter(CALLS[name][1])))
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}.* is differentiable once"):
        (dx.norm() - 1).square().backward()
    with pytest.raises(RuntimeError, match=f"{name}.* is differentiable once"):
        torch.autograd.functional.jvp(f, x, torch.ones_like(x))


@pytest.mark.parametrize("name", CALLS)
def test_constants_beside_a_derivative_are_let_through(name):
    f, x = function(name, next(iter(CALLS[name][1])))
    torch.manual_seed(0)
    y = f(x)
    for transform in (torch.func.grad, torch.func.jacfwd):
        torch.manual_seed(0)
        found = transform(lambda s: (s * f(x)).sum())(torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(found, y.sum())


@pytest.mark.parametrize("name", CALLS)
def test_vmap_alone_is_right(name):
    f, x = function(name, next(iter(CALLS[name][1])))
    several = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(f)(several), torch.stack([f(x), f(2 * x)]))
    x, seeds = x.clone().requires_grad_(), torch.randn(2, *f(x).shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(f(x), x, seeds, is_grads_batched=True)
    wanted = [torch.autograd.grad(f(x), x, seed)[0] for seed in seeds]
    torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("act", ["relu", "lrelu", "prelu", "selu", "tanh"])
def test_norm_act_without_norm_has_every_derivative(act):
    slope, more = rand(3).abs(), {"gamma": rand(3), "beta": rand(3), "residual": rand(2, 3, 6, 6)}

    def mine(x):
        return norm_act(x, act=act, slope=slope if act == "prelu" else 0.2, **more)

    def plain(x):
        y = x * more["gamma"][:, None, None] + more["beta"][:, None, None]
        acts = {"relu": F.relu, "lrelu": lambda y: F.leaky_relu(y, 0.2), "selu": F.selu}
        acts |= {"prelu": lambda y: F.prelu(y, slope), "tanh": torch.tanh}
        return acts[act](y) + more["residual"]

    torch.testing.assert_close(torch.func.jvp(mine, (X,), (X,)), torch.func.jvp(plain, (X,), (X,)))
    found, wanted = (torch.func.vjp(f, X)[1](X) for f in (mine, plain))
    torch.testing.assert_close(found, wanted)


def test_compiled_code_refuses_too():
    torch._dynamo.reset()
    f, x = function("conv_norm_act", "x")
    for call in (
        torch.compile(lambda x: torch.func.jvp(f, (x,), (x,))[1], backend="aot_eager"),
        lambda x: torch.func.jvp(torch.compile(f, backend="aot_eager"), (x,), (x,)),
    ):
        with pytest.raises(NotImplementedError, match="conv_norm_act has no forward-mode"):
            call(x)


@pytest.mark.parametrize("name", CALLS)
def test_the_question_costs_no_graph_break(name):
    torch._dynamo.reset()
    f, x = function(name, next(iter(CALLS[name][1])))
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), f(x))
