"""Gradients of a block's parameters that are added to buffers, past autograd (`layouts.Direct`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastunit.kernels.conv.layouts import Direct
from fastunit.kernels.conv.plan import NeededGradients, Plan


def needed_gradients(
    plan: Plan, of_inputs: Sequence[bool], into: Direct | None, has_residual: bool
) -> NeededGradients:
    """Return what backward computes, from what autograd needs: of x, w, b, gamma, beta, prelu."""
    needed = NeededGradients(of_inputs[0], of_inputs[1], any(of_inputs[2:6]), has_residual)
    if into is None:
        return needed
    return needed._replace(w=True, sums=of_inputs[5] or _wants_sums(plan, into))


def _wants_sums(plan: Plan, into: Direct) -> bool:
    """Return whether a gradient of bias, gamma or beta is not always zero."""
    _, b, *others = into.gradients
    return (b is not None and plan.norm != "in") or any(other is not None for other in others)


@torch.no_grad()
def add_gradients(plan: Plan, into: Direct, found: list[Tensor | None]) -> None:
    """Add the gradients of w, b, gamma and beta to their buffers, and take them out of `found`.

    That of w is there already on Triton's kernels.
    """
    for place, buffer in enumerate(into.gradients, start=1):
        gradient, found[place] = found[place], None
        zero = place == 2 and plan.norm == "in"  # the norm takes a bias away again
        if buffer is not None and gradient is not None and not zero:
            buffer.add_(gradient.view(buffer.shape))
