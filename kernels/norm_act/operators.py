"""The operators behind `norm_act`, in both directions, and their derivatives.

Registered with PyTorch for torch.compile, CUDA graphs and dispatch; `norm_act_eager` runs the same
without the dispatcher.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastunit.kernels.common import derivatives, eager
from fastunit.kernels.common.frame import channels_last, dense, memory_format, no_view, owned
from fastunit.kernels.norm_act.aten import (
    NormActOptions,
    norm_act_aten,
    norm_act_backward_aten,
    per_row,
)
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton
from fastunit.kernels.norm_act.plain import norm_act_plain
from fastunit.kernels.norm_act.rows import Rows

_NAME = "norm_act (instance_norm_act, and the norm of a block)"
_PARAMETERS = "Tensor? gamma, Tensor? beta, Tensor? slope"
_OPTIONS = "str norm, float eps, str act, float negative, int halo, str pad_mode, str impl"


def _fprop(
    options: NormActOptions,
    impl: str,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y and the statistics mean, rstd [N, C], which are empty for norm "none"."""
    if impl == "triton":
        skip = None if residual is None else _pixels(residual)
        y, mean, rstd = norm_act_triton(_pixels(x), gamma, beta, slope, skip, options)
        return channels_last(y), mean, rstd
    y, mean, rstd = norm_act_aten(x, gamma, beta, slope, residual, options)
    return y.contiguous(memory_format=_result_format(x, impl)), mean, rstd


norm_act_operator = torch.library.custom_op(
    "fastunit::norm_act",
    lambda *args: _fprop(NormActOptions(*args[5:11]), args[11], *args[:5]),
    mutates_args=(),
    schema=f"(Tensor x, {_PARAMETERS}, Tensor? residual, {_OPTIONS})"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
)


@norm_act_operator.register_fake
def _(x, gamma, beta, slope, residual, norm, eps, act, negative, halo, pad_mode, impl):
    samples, channels, height, width = x.shape
    shape = (samples, channels, height + 2 * halo, width + 2 * halo)
    y = x.new_empty(shape).contiguous(memory_format=_result_format(x, impl))
    wide = torch.promote_types(x.dtype, torch.float32)
    shape = (0,) if norm == "none" else (samples, channels)
    return y, *(x.new_empty(shape, dtype=wide) for _ in range(2))


def _bprop(
    options: NormActOptions,
    impl: str,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: bool,
    sums: bool,
) -> tuple[Tensor | None, ...]:
    """Return dx, dresidual, dgamma, dbeta and dslope; None where there is none."""
    saved = (mean, rstd, gamma, beta, slope, options)
    wanted: dict[str, Any] = {"residual": residual, "sums": sums}
    rows = None
    if impl == "triton":
        rows = Rows.like(beta, gamma, None) if sums else None
        found = norm_act_backward_triton(dense(dy), _pixels(x), *saved, **wanted, rows=rows)
        dx = channels_last(found.dx)
        dresidual = None if found.dresidual is None else channels_last(found.dresidual)
    else:
        found = norm_act_backward_aten(dy, x, *saved, **wanted)
        dx = owned(found.dx, memory_format(x), dy)
        dresidual = found.dresidual
        if dresidual is not None:
            dresidual = owned(dresidual, memory_format(x), dy, dx)
    sums_of = ((found.dgamma, gamma), (found.dbeta, beta), (found.dslope, slope))
    dgamma, dbeta, dslope = [None if g is None or p is None else per_row(g, p) for g, p in sums_of]
    if rows is not None and gamma is not None and rows.gamma is not None:
        dgamma = rows.gamma.view(gamma.shape)
    if rows is not None and beta is not None and rows.beta is not None:
        dbeta = rows.beta.view(beta.shape)
    return dx, dresidual, dgamma, dbeta, dslope


def _filled(tensors: Iterable[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Put an empty tensor in the place of each None, which an operator cannot return."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


_norm_act_backward = torch.library.custom_op(
    "fastunit::norm_act_backward",
    lambda *args: _filled(_bprop(NormActOptions(*args[9:15]), args[15], *args[:9]), args[0]),
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor mean, Tensor rstd, {_PARAMETERS}, bool residual, "
    f"bool sums, {_OPTIONS})"
    " -> (Tensor dx, Tensor dresidual, Tensor dgamma, Tensor dbeta, Tensor dslope)",
)


@_norm_act_backward.register_fake
def _(dy, x, mean, rstd, gamma, beta, slope, residual, sums, *options):
    _, _, _, _, halo, _, impl = options
    dx = torch.empty_like(x, memory_format=_result_format(x, impl))
    dresidual = torch.empty_like(dx) if residual and halo else x.new_empty(0)
    parameters = ((p if sums else None) for p in (gamma, beta, slope))
    rest = (x.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters)
    return dx, dresidual, *rest


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _save(ctx, (*inputs[:5], NormActOptions(*inputs[5:11]), inputs[11], False), output)
    ctx.mark_non_differentiable(*output[1:])


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gamma, beta, slope, residual, ctx.norm_act, ctx.impl, ctx.auto = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, *output[1:], gamma, beta, slope)


def _gradients(ctx: Any, dy: Tensor) -> Sequence[Tensor | None]:
    """Return the gradients of the forward operator's tensors."""
    options, needs, saved = ctx.norm_act, ctx.needs_input_grad[:5], ctx.saved_tensors
    if ctx.auto and derivatives.differentiated_again():
        return _gradients_again(ctx, dy, *saved)
    wanted = needs[4] and options.halo > 0, any(needs[1:4])
    if eager.hides_backward(dy, *saved):
        given: Any = (dy, *saved, *wanted)
        dx, dresidual, *parameters = _bprop(options, ctx.impl, *given)
    else:
        dx, dresidual, *parameters = _norm_act_backward(dy, *saved, *wanted, *options, ctx.impl)
    found = dx, *parameters, dresidual if options.halo else dy
    return [g if needed else None for g, needed in zip(found, needs, strict=True)]


def _gradients_again(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
) -> Sequence[Tensor | None]:
    """Return the gradients of the forward operator's tensors, with graphs of their own."""
    residual = torch.zeros_like(x, requires_grad=True) if ctx.has_residual else None
    tensors = x, gamma, beta, slope, residual
    run = functools.partial(norm_act_plain, options=ctx.norm_act)
    return derivatives.gradients(run, tensors, ctx.needs_input_grad[:5], dy)


def _backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple:
    return *_gradients(ctx, dy), *(None,) * (len(NormActOptions._fields) + 1)


def _refuse(ctx: Any, *gradients: Tensor) -> tuple:
    derivatives.refuse_second(_NAME)


def norm_act_eager(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
    impl: str,
    auto: bool,
) -> Tensor:
    """Apply the operator to checked arguments, without the dispatcher.

    With `auto` its gradients may be differentiated.
    """
    return _Eager.apply(x, gamma, beta, slope, residual, options, impl, auto)


class _Eager(torch.autograd.Function):
    """The forward operator in eager mode."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, options, impl, _ = args
        found = _fprop(options, impl, *tensors)
        _save(ctx, args, found)
        return no_view(found[0]) if impl == "triton" else found[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        return *_gradients(ctx, dy), None, None, None


norm_act_operator.register_autograd(_backward, setup_context=_setup_context)
_norm_act_backward.register_autograd(_refuse)


def _pixels(x: Tensor) -> Tensor:
    """View an image [N, C, H, W] as [N, H, W, C], contiguous but for up to 4 channels."""
    return x.permute(0, 2, 3, 1) if x.shape[1] <= 4 else dense(x)


def _result_format(x: Tensor, impl: str) -> torch.memory_format:
    """Return the result's: channels_last from Triton, else x's."""
    return torch.channels_last if impl == "triton" else memory_format(x)
