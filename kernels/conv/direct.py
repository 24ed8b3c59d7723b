"""Gradients of a block's parameters that are added to buffers, past autograd (`layouts.Direct`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastunit.kernels.conv.arguments import grouped
from fastunit.kernels.conv.layouts import Direct
from fastunit.kernels.conv.plan import NeededGradients, Plan
from fastunit.kernels.norm_act.rows import Rows


def needed_gradients(
    plan: Plan, of_inputs: Sequence[bool], into: Direct | None, has_residual: bool
) -> NeededGradients:
    """Return what backward computes, from what autograd needs: of x, w, b, gamma, beta, prelu."""
    needed = NeededGradients(of_inputs[0], of_inputs[1], any(of_inputs[2:6]), has_residual)
    if into is None:
        return needed
    return needed._replace(w=True, sums=of_inputs[5] or direct_rows(plan, into) is not None)


def grouped_gradients(into: Direct) -> tuple[Tensor | None, ...]:
    """Return the buffers of w, b, gamma and beta, with their dimension of groups."""
    w, *others = into.gradients
    assert w is not None  # every block has filters
    return grouped(w, *others)


def filters_gradient(into: Direct) -> tuple[Tensor, bool]:
    """Return the buffer of w's gradient, [G, ...], and whether to add to what it holds.

    Counts as a use.
    """
    w = grouped_gradients(into)[0]
    assert w is not None
    return w, not into.first_use()


def direct_rows(plan: Plan, into: Direct) -> Rows | None:
    """Return where gradients of bias, gamma and beta are added; None if all are always zero."""
    _, b, gamma, beta = grouped_gradients(into)
    if plan.norm == "in":
        b = None  # the norm takes a bias away again
    if b is None and gamma is None and beta is None:
        return None
    return Rows(beta, gamma, b, add=True)
