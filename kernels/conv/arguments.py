"""What every convolutional block checks about its arguments; ValueError names what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from fastunit.kernels.common import checks
from fastunit.kernels.common.checks import Form
from fastunit.kernels.conv.plan import Plan

_LETTERS = {"conv": "K, C", "upsample": "K, C", "transpose": "C, K"}


def result(plan: Plan, *given: tuple[torch.Size, torch.dtype] | None) -> Form:
    """Check the arguments of `conv_block`; return the result's form.

    `given` are the forms of x, w, b, gamma, beta and prelu's slope.
    """
    x, w, b, gamma, beta, prelu = (None if each is None else Form(*each) for each in given)
    assert x is not None and w is not None
    checks.image("x", x)
    _settings(plan)
    _filters(plan, x, w)
    size, taps = x.shape[2:], w.shape[-2:]
    if plan.kind == "upsample":
        size = tuple(2 * length for length in size)
    if plan.kind != "transpose":
        checks.padding(size, plan.padding, plan.pad_mode)
        checks.window(size, taps, plan.padding)
    out = [plan.size_out(*pair) for pair in zip(x.shape[2:], taps, strict=True)]
    if min(out) < 1:
        raise ValueError(f"padding={plan.padding} leaves nothing of the result: {out[0]}x{out[1]}")
    y = Form((x.shape[0], plan.channels_out(w.shape), *out), x.dtype)
    _bias(w, b, y.shape[1])
    checks.slope(y, plan.act, prelu or plan.slope)
    checks.parameter_rows(y, gamma=gamma, beta=beta)
    checks.padding(out, plan.halo, plan.halo_mode)
    _dtypes(x, w=w, b=b)
    return y


def grouped(w: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return filters and parameters with their dimension of groups, where it was left out."""
    rows = (p if p is None or p.dim() == 2 else p[None] for p in parameters)
    return w if w.dim() == 5 else w[None], *rows


def _settings(plan: Plan) -> None:
    checks.choice("pad_mode", plan.pad_mode, checks.PAD_MODES)
    checks.choice("halo_mode", plan.halo_mode, checks.PAD_MODES)
    checks.choice("norm", plan.norm, checks.NORMS)
    checks.choice("act", plan.act, checks.ACTS)
    for name in ("stride", "padding", "output_padding", "halo"):
        checks.integer(name, getattr(plan, name))
    if plan.stride < 1:
        raise ValueError(f"stride={plan.stride} must be at least 1")
    if plan.padding < 0:
        raise ValueError(f"padding={plan.padding} must not be negative")
    if not 0 <= plan.output_padding < plan.stride:
        raise ValueError(
            f"output_padding={plan.output_padding} must be less than stride={plan.stride}, "
            "and not negative"
        )


def _filters(plan: Plan, x: Form, w: Form) -> None:
    letters, channels, shape = _LETTERS[plan.kind], x.shape[1], tuple(w.shape)
    axis = -4 if plan.kind == "transpose" else -3
    if len(shape) not in (4, 5) or shape[axis] != channels:
        raise ValueError(
            f"w must be [{letters}, R, S] or [G, {letters}, R, S] with C={channels} as in x, "
            f"not of shape {shape}"
        )
    if len(shape) == 5 and (shape[0] < 1 or x.shape[0] % shape[0]):
        raise ValueError(f"w has {shape[0]} groups of filters, which do not divide N={x.shape[0]}")
    if plan.impl == "triton" and plan.kind != "conv" and shape[-2] != shape[-1]:
        raise ValueError(
            f"impl='triton' takes square filters here, not {shape[-2]}x{shape[-1]}; use impl='aten'"
        )


def _bias(w: Form, b: Form | None, channels: int) -> None:
    wanted = (*w.shape[:-4], channels)
    if b is not None and b.shape != wanted:
        raise ValueError(f"b must be of shape {wanted}, not {tuple(b.shape)}")


def _dtypes(x: Form, **parameters: Form | None) -> None:
    for name, parameter in parameters.items():
        if parameter is not None and parameter.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"{name} must be {x.dtype}, as x, or float32, not {parameter.dtype}")
