"""Activations inside Triton kernels, on fp32 values."""

from __future__ import annotations

import triton
import triton.language as tl

SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772  # of SELU (Klambauer et al. 2017)
SELU_SCALE, SELU_ALPHA = tl.constexpr(SCALE), tl.constexpr(ALPHA)


@triton.jit
def tanh(x):
    """Within 1e-7 of the exact value; no overflow. (The interpreter has no libdevice.)"""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def activate(x, slope, ACT: tl.constexpr):
    """Return act(x); slope is a scalar, or a tensor that broadcasts against x."""
    if ACT == "relu":
        # Not maximum(), here and below: a NaN stays a NaN, as in PyTorch.
        return tl.where(x < 0, 0.0, x)
    elif ACT == "lrelu" or ACT == "prelu":
        return tl.where(x > 0, x, x * slope)
    elif ACT == "selu":
        below = (tl.exp(tl.where(x > 0, 0.0, x)) - 1.0) * SELU_ALPHA
        return tl.where(x > 0, x, below) * SELU_SCALE
    elif ACT == "tanh":
        return tanh(x)
    else:
        return x
