"""What every convolutional block checks about its arguments; ValueError names what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from fastunit.kernels.common import checks
from fastunit.kernels.conv.plan import Plan

_LETTERS = {"conv": "K, C", "upsample": "K, C", "transpose": "C, K"}


def block(
    plan: Plan,
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: float | Tensor,
    residual: Tensor | None,
) -> Tensor | None:
    """Check the arguments of `conv_block`; return the residual, under autocast in x's dtype."""
    _settings(plan)
    _filters(plan, x, w)
    size, taps = x.shape[2:], w.shape[-2:]
    if plan.kind == "upsample":
        size = [2 * length for length in size]
    if plan.kind != "transpose":
        image = _of_shape(x, *x.shape[:2], *size)
        checks.padding(image, plan.padding, plan.pad_mode)
        checks.window(image, w if w.dim() == 4 else w[0], plan.padding)
    out = [plan.size_out(*pair) for pair in zip(x.shape[2:], taps, strict=True)]
    if min(out) < 1:
        raise ValueError(f"padding={plan.padding} leaves nothing of the result: {out[0]}x{out[1]}")
    result = _of_shape(x, x.shape[0], plan.channels_out(w), *out)
    _bias(w, b, result.shape[1])
    checks.slope(result, plan.act, slope)
    checks.parameter_rows(result, gamma=gamma, beta=beta)
    checks.padding(result, plan.halo, plan.halo_mode)
    _dtypes(x, w=w, b=b)
    return checks.residual(result, residual)


def _of_shape(x: Tensor, *shape: int) -> Tensor:
    """Return a stand-in for an image like x of that shape, without its memory."""
    return x.new_empty(()).expand(shape)


def _settings(plan: Plan) -> None:
    checks.choice("pad_mode", plan.pad_mode, checks.PAD_MODES)
    checks.choice("halo_mode", plan.halo_mode, checks.PAD_MODES)
    checks.choice("norm", plan.norm, checks.NORMS)
    checks.choice("act", plan.act, checks.ACTS)
    for name in ("stride", "padding", "output_padding", "halo"):
        if not isinstance(value := getattr(plan, name), int):
            raise ValueError(f"{name}={value!r} must be an integer, the same for both axes")
    if plan.stride < 1:
        raise ValueError(f"stride={plan.stride} must be at least 1")
    if plan.padding < 0:
        raise ValueError(f"padding={plan.padding} must not be negative")
    if not 0 <= plan.output_padding < plan.stride:
        raise ValueError(
            f"output_padding={plan.output_padding} must be less than stride={plan.stride}, "
            "and not negative"
        )


def _filters(plan: Plan, x: Tensor, w: Tensor) -> None:
    letters, channels = _LETTERS[plan.kind], x.shape[1]
    axis = -4 if plan.kind == "transpose" else -3
    if w.dim() not in (4, 5) or w.shape[axis] != channels:
        raise ValueError(
            f"w must be [{letters}, R, S] or [G, {letters}, R, S] with C={channels} as in x, "
            f"not of shape {tuple(w.shape)}"
        )
    if w.dim() == 5 and x.shape[0] % max(len(w), 1):
        raise ValueError(f"w has {len(w)} groups of filters, which do not divide N={x.shape[0]}")
    if plan.impl == "triton" and plan.kind != "conv" and w.shape[-2] != w.shape[-1]:
        raise ValueError(
            f"impl='triton' takes square filters here, not {w.shape[-2]}x{w.shape[-1]}; "
            "use impl='aten'"
        )


def _bias(w: Tensor, b: Tensor | None, channels: int) -> None:
    wanted = (*w.shape[:-4], channels)
    if b is not None and b.shape != wanted:
        raise ValueError(f"b must be of shape {wanted}, not {tuple(b.shape)}")


def _dtypes(x: Tensor, **parameters: Tensor | None) -> None:
    for name, parameter in parameters.items():
        if parameter is not None and parameter.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"{name} must be {x.dtype}, as x, or float32, not {parameter.dtype}")
