"""The one operator behind every convolutional block: convolve, normalise, activate, add.

It is registered for PyTorch's dispatcher, autograd and compiler. Forward and backward are in
`aten` and `launch` (Triton); the public functions in `api`, the checks of their arguments in
`arguments`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastunit.kernels.common import checks, derivatives, eager, runtime
from fastunit.kernels.common.checks import Activation, Norm, PadMode
from fastunit.kernels.common.runtime import Impl
from fastunit.kernels.conv import arguments, aten, launch
from fastunit.kernels.conv.plain import split_block, splitting_pays
from fastunit.kernels.conv.plan import Gradients, Kind, NeededGradients, Plan

_IMPLEMENTATIONS = {"aten": aten, "triton": launch}

# The fields of Plan, in order.
_PLAN = (
    "str kind, int stride, int padding, int output_padding, str pad_mode, str norm, float eps, "
    "str act, float slope, int halo, str halo_mode, str impl"
)
_NAMES = {"conv": "conv_norm_act", "transpose": "conv_transpose", "upsample": "upsample_conv"}
_PARAMETERS = "Tensor w, Tensor? b, Tensor? gamma, Tensor? beta, Tensor? prelu"
_TENSORS = 7  # that the forward operator takes
_GIVEN = 14  # arguments of the backward operator between dy and the plan


def conv_block(
    kind: Kind,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    residual: Tensor | None = None,
    slope: float | Tensor = 0.0,
    *,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    pad_mode: PadMode = "zero",
    norm: Norm = "none",
    eps: float = 1e-5,
    act: Activation = "none",
    halo: int = 0,
    halo_mode: PadMode = "zero",
    impl: Impl = "auto",
    name: str | None = None,
) -> Tensor:
    """Check the arguments and run a block; `kind` is "conv", "transpose" or "upsample".

    The public functions say what the arguments are; `name` is the one that was called, where it
    does not follow from `kind`.
    """
    name = name or _NAMES.get(kind, kind)
    chosen = runtime.choose_impl(impl, x)
    given = x, w, b, gamma, beta, slope, residual
    if chosen != "plain" and derivatives.only_plain(impl, name, *given):
        chosen = "plain"
    if chosen == "triton" and impl == "auto" and _is_oblong(kind, w):
        chosen = "aten"
    x = runtime.autocast(x)
    prelu = slope if act == "prelu" and isinstance(slope, Tensor) else None
    plan = Plan(
        kind, stride, padding, output_padding, pad_mode, norm, float(eps), act,
        float(slope) if act == "lrelu" and not isinstance(slope, Tensor) else 0.0, halo, halo_mode,
        chosen,
    )  # fmt: skip
    form = checks.form
    negative = form(slope) if isinstance(slope, Tensor) else slope
    result = arguments.result(form(x), form(w), form(b), form(gamma), form(beta), negative, *plan)
    if residual is not None:
        residual = checks.residual(result, residual)
    tensors = x, w, b, gamma, beta, prelu, residual
    direct = eager.only_autograd(*tensors)
    auto = runtime.is_auto(impl)
    if chosen == "plain" or (direct and auto and splitting_pays(plan, x, w)):
        with runtime.no_autocast(x):
            return split_block(plan, *tensors)
    if direct:
        follows = auto and x.requires_grad and torch.is_grad_enabled()
        return _Eager.apply(*tensors, derivatives.stand_in(x) if follows else None, plan, auto)
    return _forward(x, *_grouped(w, b, gamma, beta), prelu, residual, *plan)[0]


def _grouped(w: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return filters and parameters with their dimension of groups, where it was left out."""
    rows = (p if p is None or p.dim() == 2 else p[None] for p in parameters)
    return w if w.dim() == 5 else w[None], *rows


def _is_oblong(kind: str, w: Tensor) -> bool:
    """Return whether these are transposed filters that the kernels do not take."""
    return kind != "conv" and w.dim() > 1 and w.shape[-1] != w.shape[-2]


def _fprop(plan: Plan, x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    with runtime.no_autocast(x):
        y, haloed, raw, mean, rstd = _IMPLEMENTATIONS[plan.impl].fprop(plan, x, *others)
    if plan.norm == "none":
        mean = rstd = None
    return y, haloed, raw, mean, rstd


def _filled(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Put an empty tensor in the place of each None, which an operator cannot return."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _bprop(plan: Plan, dy: Tensor, *given: Any) -> Gradients:
    with runtime.no_autocast(dy):
        return _IMPLEMENTATIONS[plan.impl].backward(
            plan, dy, *given[:-4], NeededGradients(*given[-4:])
        )


_forward = torch.library.custom_op(
    "fastunit::conv_block",
    lambda x, *args: _filled(_fprop(Plan(*args[_TENSORS - 1 :]), x, *args[: _TENSORS - 1]), x),
    mutates_args=(),
    schema=f"(Tensor x, {_PARAMETERS}, Tensor? residual, {_PLAN})"
    " -> (Tensor y, Tensor haloed, Tensor raw, Tensor mean, Tensor rstd)",
)
_backward = torch.library.custom_op(
    "fastunit::conv_block_backward",
    lambda dy, *args: _filled(_bprop(Plan(*args[_GIVEN:]), dy, *args[:_GIVEN]), dy),
    mutates_args=(),
    schema="(Tensor dy, SymInt[] x_shape, Tensor source, Tensor raw, Tensor mean, Tensor rstd, "
    f"{_PARAMETERS}, bool want_x, bool want_w, bool want_sums, bool has_residual, {_PLAN})"
    f" -> ({', '.join(f'Tensor d{name}' for name in Gradients._fields)})",
)


@_forward.register_fake
def _(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    prelu: Tensor | None,
    residual: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, ...]:
    plan = Plan(*settings)
    shape = (x.shape[0], plan.channels_out(w.shape), *map(plan.size_out, x.shape[2:], w.shape[3:]))
    y, haloed, raw = _IMPLEMENTATIONS[plan.impl].outputs(plan, x, w, shape)
    if plan.fuses_activation(residual is not None, gamma, beta, prelu):
        raw = None
    mean = rstd = None
    if plan.norm != "none":
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, rstd = (x.new_empty(shape[:2], dtype=wide) for _ in range(2))
    return _filled((y, haloed, raw, mean, rstd), x)


@_backward.register_fake
def _(dy: Tensor, x_shape: Sequence[int], *args: Any) -> tuple[Tensor, ...]:
    source, _, _, _, w, *parameters = args[:9]
    want_x, want_w, want_sums, has_residual, *settings = args[9:]
    plan = Plan(*settings)
    form = _IMPLEMENTATIONS[plan.impl].result_format(source, w)
    dx = dy.new_empty(x_shape).to(memory_format=form) if want_x else None
    dw = torch.empty_like(w) if want_w else None
    sums = [p.new_empty(p.shape) if want_sums and p is not None else None for p in parameters]
    dresidual = None
    if has_residual and plan.halo:
        rows, columns = (length - 2 * plan.halo for length in dy.shape[2:])
        dresidual = dy.new_empty(*dy.shape[:2], rows, columns).to(memory_format=form)
    return _filled((dx, dw, *sums, dresidual), dy)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
    ctx.auto = False
    _save(ctx, Plan(*inputs[_TENSORS:]), inputs, output)


def _save(
    ctx: Any,
    plan: Plan,
    inputs: tuple,
    output: tuple[Tensor | None, ...],
    stand_in: Tensor | None = None,
) -> None:
    x, w, b, gamma, beta, prelu, residual = inputs[:_TENSORS]
    y, haloed, raw, mean, rstd = output
    product = y if plan.fuses_activation(residual is not None, gamma, beta, prelu) else raw
    if not plan.keeps_product(gamma):
        product = None  # so that the result may be changed in place
    source = x if haloed is None or haloed.dim() == 1 else haloed
    ctx.plan, ctx.x_shape, ctx.has_residual = plan, x.shape, residual is not None
    ctx.saves_x = source is x
    if ctx.saves_x:
        stand_in = None
    ctx.save_for_backward(stand_in, source, product, mean, rstd, w, b, gamma, beta, prelu)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None) -> Sequence[Tensor | None]:
    """Return the gradients of the tensors that the forward operator was given."""
    if dy is None:
        return (None,) * _TENSORS
    plan, of_inputs = ctx.plan, ctx.needs_input_grad[:_TENSORS]
    needed = *of_inputs[:2], any(of_inputs[2:6]), ctx.has_residual
    stand_in, source, product, mean, rstd, *parameters, prelu = ctx.saved_tensors
    if ctx.auto and derivatives.differentiated_again():
        image = source
        if not ctx.saves_x:
            image = _IMPLEMENTATIONS[plan.impl].image(plan, ctx.x_shape, source, parameters[0])
            image = image if stand_in is None else derivatives.with_values(stand_in, image)
        return _gradients_again(ctx, dy, image, *parameters, prelu)
    if ctx.saves_x and plan.impl == "triton":
        # Hooks that keep saved tensors elsewhere (save_on_cpu) may return them in other strides.
        source = source.contiguous(memory_format=torch.channels_last)
    saved = [product, mean, rstd, *_grouped(*parameters), prelu]
    if eager.hides_backward(dy, source, *saved):
        found = list(_bprop(plan, dy, ctx.x_shape, source, *saved, *needed))
    else:
        saved[:3] = _filled(saved[:3], dy)
        found = list(_backward(dy, ctx.x_shape, source, *saved, *needed, *plan))
    for place, parameter in enumerate(parameters, start=1):
        gradient = found[place]
        if gradient is not None and parameter is not None and gradient.dim() > parameter.dim():
            found[place] = gradient[0]
    if plan.halo == 0:
        found[-1] = dy  # an operator may not return its argument
    return [g if need else None for g, need in zip(found, of_inputs, strict=True)]


def _gradients_again(ctx: Any, dy: Tensor, *tensors: Tensor | None) -> Sequence[Tensor | None]:
    """Return the gradients of x, the parameters and the residual, with graphs of their own."""
    plan = ctx.plan._replace(impl="plain")
    residual = None
    if ctx.has_residual:  # its values do not matter
        residual = plan.without_halo(torch.zeros_like(dy), (2, 3)).requires_grad_()
    with runtime.no_autocast(dy):
        run = functools.partial(split_block, plan)
        return derivatives.gradients(run, (*tensors, residual), ctx.needs_input_grad[:_TENSORS], dy)


def _backpropagate(ctx: Any, dy: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, dy), *(None,) * len(Plan._fields)


def _remember(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.kind = Plan(*inputs[-len(Plan._fields) :]).kind


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    also = " (conv_gemm)" if ctx.kind == "conv" else ""
    derivatives.refuse_second(_NAMES[ctx.kind] + also)


class _Eager(torch.autograd.Function):
    """The forward operator in eager mode; its parameters may lack the dimension of groups."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        x, w, b, gamma, beta, prelu, residual, stand_in, plan, ctx.auto = args
        found = _fprop(plan, x, *_grouped(w, b, gamma, beta), prelu, residual)
        _save(ctx, plan, args, found, stand_in)
        y = found[0]
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dy), None, None, None


_forward.register_autograd(_backpropagate, setup_context=_setup_context)
_backward.register_autograd(_refuse, setup_context=_remember)
