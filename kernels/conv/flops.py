"""FLOPs of the blocks' operators for `torch.utils.flop_counter.FlopCounterMode`.

As PyTorch counts its own convolutions: two for each product of the layer as it is defined, so that
a network has the same number before and after it runs on these operators. (Upsampling computes
fewer; norms and activations count nothing.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastunit.kernels.conv.plan import Plan

Shape = Sequence[int]


def _products(x: Shape, w: Shape, plan: Plan) -> int:
    """Return the products of a block of an image [N, C, H, W] with w [G, K, C, R, S]."""
    taps = w[-2:]
    if plan.kind == "transpose":  # each pixel of the image with each tap
        places = math.prod(x[2:])
    else:
        places = math.prod(plan.size_out(*pair) for pair in zip(x[2:], taps, strict=True))
    return x[0] * places * math.prod(w[-4:])


def _forward(x: Shape, w: Shape, *args: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * _products(x, w, Plan(*args[-len(Plan._fields) :]))


def _backward(dy: Shape, x: Shape, *args: Any, out_shape: Any = None, **options: Any) -> int:
    given = (dy, x, *args)
    plan, w = Plan(*args[-len(Plan._fields) :]), given[6]
    wanted = given[12:14]  # gradients of x and w
    return 2 * sum(map(bool, wanted)) * _products(x, w, plan)


def register() -> None:
    """Make the formulas known; FlopCounterMode reads them when it is made."""
    from torch.utils.flop_counter import register_flop_formula  # which asks for triton

    formulas: dict[str, Any] = {"conv_block": _forward, "conv_block_backward": _backward}
    for name, formula in formulas.items():
        register_flop_formula(getattr(torch.ops.fastunit, name))(formula)
