"""What may be changed in place after an operation: all that its backward does not need."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import (
    conv_gemm,
    conv_norm_act,
    conv_transpose,
    norm_act,
    reparameterize,
    upsample_conv,
)

NORMS = ("none", "in", "ln")
ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")
CHANGES = {
    "relu_": F.relu_,
    "add_": lambda y: y.add_(1),
    "mul_": lambda y: y.mul_(-2),
    "zero_": lambda y: y.zero_().add_(1),
    "part": lambda y: y[:, :, 1:3].mul_(0.5),
}


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


OPERATIONS = {
    "conv_norm_act": lambda x, w, b, **o: conv_norm_act(x, w, b, padding=1, **o),
    "reflected": lambda x, w, b, **o: conv_norm_act(x, w, b, padding=1, pad_mode="reflect", **o),
    "haloed": lambda x, w, b, **o: conv_norm_act(x, w, b, halo=1, halo_mode="reflect", **o),
    "conv_transpose": lambda x, w, b, **o: conv_transpose(x, w.transpose(0, 1), b, **o),
    "upsample_conv": lambda x, w, b, **o: upsample_conv(x, w, b, padding=1, **o),
    "norm_act": lambda x, w, b, **o: norm_act(x * w.sum() + b.sum(), **o),
}


def gradients(f, change, tensors, out_of_place):
    y = f(*tensors)
    y = y.clone() if out_of_place else y
    changed = change(y)
    y = y if changed.shape != y.shape else changed
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y.detach().clone(), *torch.autograd.grad(y, tensors, dy, allow_unused=True)


def check(f, change, *tensors):
    found, wanted = (gradients(f, change, tensors, clone) for clone in (False, True))
    for name, a, b in zip(("y", *(str(t.shape) for t in tensors)), found, wanted, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


# The result itself is kept where bias and activation are the whole tail, and by PyTorch's own.
KEPT = {("none", act) for act in ACTS[1:]}
FREE = [pair for pair in itertools.product(NORMS, ACTS) if pair not in KEPT]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_result_may_be_changed_in_place(operation, change):
    for norm, act in FREE:
        x, w, b = leaf(2, 3, 5, 6), leaf(3, 3, 3, 3), leaf(3)
        slope = torch.full((1,), 0.3, dtype=x.dtype) if act == "prelu" else 0.3
        check(
            lambda x, w, b, o=(norm, act, slope): OPERATIONS[operation](
                x, w, b, norm=o[0], act=o[1], slope=o[2]
            ),
            CHANGES[change],
            *(x, w, b),
        )


@pytest.mark.parametrize("change", CHANGES)
def test_so_may_one_with_a_residual_a_shift_or_groups(change):
    x, w, b, beta = leaf(2, 3, 5, 6), leaf(3, 3, 3, 3), leaf(3), leaf(2, 3)

    def apply(x, w, b, beta, residual=None):
        return conv_norm_act(x, w, b, padding=1, beta=beta, residual=residual)

    check(apply, CHANGES[change], x, w, b, beta)
    check(apply, CHANGES[change], x, w, b, beta, leaf(2, 3, 5, 6))
    check(conv_norm_act, CHANGES[change], x, leaf(2, 3, 3, 3, 3), leaf(2, 3))
    check(conv_gemm, CHANGES[change], x, w, b)


@pytest.mark.parametrize("act", ["relu", "lrelu", "selu", "tanh"])
def test_an_activation_that_is_undone_from_its_result_says_so(act):
    x, w, b = leaf(2, 3, 5, 6), leaf(3, 3, 3, 3), leaf(3)
    y = conv_norm_act(x, w, b, act=act).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_sample_may_be_changed_in_place():
    mu, raw, noise = leaf(2, 3, 4, 4), leaf(2, 3, 4, 4), leaf(2, 3, 4, 4).detach()
    for change in CHANGES.values():
        check(lambda mu: reparameterize(mu, noise=noise)[0], change, mu)
        check(
            lambda mu, raw: reparameterize(
                mu, raw, sigma="softplus", noise=noise, kl="normal"
            )[0],
            change, mu, raw,
        )  # fmt: skip


def test_a_bare_convolution_keeps_its_input_alone():
    x, w, b = leaf(2, 3, 5, 6), leaf(3, 3, 3, 3), leaf(3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = conv_norm_act(x, w, b)
    assert sorted(t.numel() for t in kept if t.numel())[-1] == x.numel()
    assert not any(t.numel() == y.numel() for t in kept)
