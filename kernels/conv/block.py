"""The one operator behind every convolutional block: convolve, normalise, activate, add.

It is registered for PyTorch's dispatcher, autograd and compiler. Forward and backward are in
`aten` and `launch` (Triton); the public functions in `api`, the checks of their arguments in
`arguments`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from fastunit.kernels.common import checks, derivatives, eager, runtime
from fastunit.kernels.common.checks import Form, Norm, PadMode
from fastunit.kernels.common.frame import no_view
from fastunit.kernels.common.runtime import Impl
from fastunit.kernels.conv import arguments, aten, launch, linked, plain
from fastunit.kernels.conv.direct import needed_gradients
from fastunit.kernels.conv.layouts import Direct, Filters
from fastunit.kernels.conv.linked import Next, Padded
from fastunit.kernels.conv.plain import Split
from fastunit.kernels.conv.plan import Gradients, Kind, NeededGradients, Plan

_IMPLEMENTATIONS = {"aten": aten, "triton": launch}

# The fields of Plan, in order.
_PLAN = (
    "str kind, int stride, int padding, int output_padding, str pad_mode, str norm, float eps, "
    "str act, float slope, int halo, str halo_mode, str impl"
)
_NAMES = {"conv": "conv_norm_act", "transpose": "conv_transpose", "upsample": "upsample_conv"}
_PARAMETERS = "Tensor w, Tensor? b, Tensor? gamma, Tensor? beta, Tensor? prelu"
_FILTERS = "Tensor? fprop_filters, Tensor? dgrad_filters"  # w in its layouts
_TENSORS = 9  # that the forward operator takes
_GIVEN = 15  # arguments of the backward operator between dy and the plan


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
    act: str = "none",
    halo: int = 0,
    halo_mode: PadMode = "zero",
    impl: Impl = "auto",
    filters: Filters | None = None,
    name: str | None = None,
) -> Tensor:
    """Check the arguments and run a block; `kind` is "conv", "transpose" or "upsample".

    The public functions say what the arguments are; `name` is the one that was called, where it
    does not follow from `kind`. `filters` are w, laid out before (see `packed`); they are left
    unused where the block runs in another dtype or implementation.
    """
    learnt = isinstance(slope, Tensor)
    if learnt and act == "lrelu":
        checks.slope(Form(x.shape, x.dtype), act, Form(slope.shape, slope.dtype))
    plan = Plan(
        kind, stride, padding, output_padding, pad_mode, norm, float(eps), act,
        slope if act in ("lrelu", "prelu") and not learnt else 0.0, halo, halo_mode, impl,
    )  # fmt: skip
    prelu = slope if learnt and act == "prelu" else None
    return apply(plan, x, w, b, gamma, beta, prelu, residual, filters=filters, name=name)


@overload
def apply(
    plan: Plan, x: Tensor, w: Tensor, b: Tensor | None = None, gamma: Tensor | None = None,
    beta: Tensor | None = None, prelu: Tensor | None = None, residual: Tensor | None = None,
    *, filters: Filters | None = None, name: str | None = None, follow: None = None,
) -> Tensor: ...  # fmt: skip
@overload
def apply(
    plan: Plan, x: Tensor | Padded, w: Tensor, b: Tensor | None = None,
    gamma: Tensor | None = None, beta: Tensor | None = None, prelu: Tensor | None = None,
    residual: Tensor | None = None, *, filters: Filters | None = None, name: str | None = None,
    follow: Next | None,
) -> Tensor | Padded: ...  # fmt: skip
def apply(
    plan: Plan,
    x: Tensor | Padded,
    w: Tensor,
    b: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    prelu: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    filters: Filters | None = None,
    name: str | None = None,
    follow: Next | None = None,
) -> Tensor | Padded:
    """Run the block that a plan describes; its `impl` may be "auto".

    Args:
        plan: what to compute.
        x: [N, C, H, W], or such an image in the frame that this block reads.
        w: filters, as in `conv_norm_act`, as are the other tensors.
        b: bias.
        gamma: scale after the norm.
        beta: shift after the norm.
        prelu: prelu's slope.
        residual: added last.
        filters: w, laid out before (see `packed`); left unused where they are of another dtype or
            implementation than the block runs in. With `filters.direct` backward adds the
            parameters' gradients to its buffers; w, b, gamma and beta are its values.
        name: the public function that was called.
        follow: the block that reads the result next. On Triton kernels in eager mode the result
            is then written into that block's frame, and the halo's gradient folded where this
            block's backward pass reads it: a pass over the image less in each direction.
    """
    image = x.image if isinstance(x, Padded) else x
    device = image.device.type
    if device in checks.AUTOCAST and torch.is_autocast_enabled(device):
        image, residual = runtime.autocast(image), _autocast(residual)
        given = x if image is x or (isinstance(x, Padded) and image is x.image) else image
        with runtime.no_autocast(image):
            return apply(
                plan, given, w, b, gamma, beta, prelu, residual,
                filters=filters, name=name, follow=follow,
            )  # fmt: skip
    chosen, auto = runtime.choose(plan.impl, image)
    if chosen == "triton" and plan.impl == "auto" and _is_oblong(plan.kind, w):
        chosen = "aten"
    tensors = image, w, b, gamma, beta, prelu
    direct = eager.only_autograd(*tensors, residual)
    if not direct and chosen != "plain":
        name = name or _NAMES.get(plan.kind, plan.kind)
        if derivatives.only_plain(plan.impl, name, *tensors, residual):
            chosen = "plain"
    forms: list[Any] = [None] * len(tensors)
    for place, tensor in enumerate(tensors):
        if tensor is not None:
            forms[place] = tensor.shape, tensor.dtype
    if direct:
        result, how = _settled(plan, chosen, *forms)
    else:  # torch.compile has no use for what is remembered
        how = plain.composed(plan._replace(impl=chosen))
        result = arguments.result(how.plan, *forms)
    plan = how.plan
    if residual is not None and (residual.shape != result.shape or residual.dtype != result.dtype):
        residual = checks.residual(result, residual)
    into, laid_out = None, (None, None)
    if filters is not None:
        into, laid_out = filters.direct, _fitting(filters, plan, image)
        if into is not None and laid_out[0] is None:
            raise RuntimeError(
                f"filters for {filters.of} in {filters.fprop.dtype} cannot serve {plan}"
            )
    small = auto and direct and device == "cpu" and how.values <= plain.SMALL
    if into is None and (chosen == "plain" or small):
        return plain.split_block(how, *tensors, residual, direct)
    if not direct and into is None:
        rows = arguments.grouped(w, b, gamma, beta)
        return _forward(image, *rows, prelu, residual, *laid_out, *plan)[0]
    if chosen == "triton" and (follow is not None or isinstance(x, Padded)):
        return linked.run(plan, x, *tensors, residual, laid_out, into, result.shape, follow)
    auto, anchor = into is None and auto, None if into is None else into.parameter
    again = auto and image.requires_grad and torch.is_grad_enabled()
    stand_in = derivatives.stand_in(image) if again else None
    return _Eager.apply(*tensors, residual, *laid_out, stand_in, plan, into, anchor, auto)


def _fitting(filters: Filters, plan: Plan, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return filters for the product and for the gradient of x, if the kernels can read them."""
    if filters.fprop.dtype != x.dtype or filters.of != (plan.impl, plan.kind, plan.stride):
        return None, None
    return filters.fprop, filters.dgrad


def _autocast(residual: Tensor | None) -> Tensor | None:
    return None if residual is None else runtime.autocast(residual)


@functools.lru_cache(4096)
def _settled(plan: Plan, impl: str, *forms: Any) -> tuple[Form, Split]:
    """Check arguments of these forms; return the result's, and how `split_block` runs the block."""
    plan = plan._replace(impl=impl)
    result = arguments.result(plan, *forms)
    (x, _), (w, _), *_ = forms
    return result, plain.split(plan, x, w, result.shape)


def _is_oblong(kind: str, w: Tensor) -> bool:
    """Return whether these are transposed filters that the kernels do not take."""
    return kind != "conv" and w.dim() > 1 and w.shape[-1] != w.shape[-2]


def _fprop(plan: Plan, x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    with runtime.no_autocast(x):
        return _IMPLEMENTATIONS[plan.impl].fprop(plan, x, *others)


def _filled(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """Put an empty tensor in the place of each None, which an operator cannot return."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _bprop(plan: Plan, dy: Tensor, *given: Any, into: Direct | None = None) -> Gradients:
    """Return the gradients; those that `into` has buffers for are added to them (on Triton)."""
    more = {"into": into} if plan.impl == "triton" else {}
    with runtime.no_autocast(dy):
        return _IMPLEMENTATIONS[plan.impl].backward(
            plan, dy, *given[:-5], NeededGradients(*given[-4:]), given[-5], **more
        )


_forward = torch.library.custom_op(
    "fastunit::conv_block",
    lambda x, *args: _filled(_fprop(Plan(*args[_TENSORS - 1 :]), x, *args[: _TENSORS - 2]), x),
    mutates_args=(),
    schema=f"(Tensor x, {_PARAMETERS}, Tensor? residual, {_FILTERS}, {_PLAN})"
    " -> (Tensor y, Tensor haloed, Tensor raw, Tensor mean, Tensor rstd)",
)
_backward = torch.library.custom_op(
    "fastunit::conv_block_backward",
    lambda dy, *args: _filled(_bprop(Plan(*args[_GIVEN:]), dy, *args[:_GIVEN]), dy),
    mutates_args=(),
    schema="(Tensor dy, SymInt[] x_shape, Tensor source, Tensor raw, Tensor mean, Tensor rstd, "
    f"{_PARAMETERS}, Tensor? filters, bool want_x, bool want_w, bool want_sums, "
    f"bool has_residual, {_PLAN})"
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
    fprop_filters: Tensor | None,
    dgrad_filters: Tensor | None,
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
    source, _, _, _, w, *parameters = args[:9]  # then the filters
    want_x, want_w, want_sums, has_residual, *settings = args[10:]
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
    x, w, b, gamma, beta, prelu, residual, _, filters = inputs[:_TENSORS]
    y, haloed, raw, mean, rstd = output
    product = y if plan.fuses_activation(residual is not None, gamma, beta, prelu) else raw
    if not plan.keeps_product(gamma):
        product = None  # so that the result may be changed in place
    source = x if haloed is None or haloed.dim() == 1 else haloed
    ctx.plan, ctx.x_shape, ctx.has_residual = plan, x.shape, residual is not None
    ctx.saves_x, ctx.into = source is x, None
    if ctx.saves_x:
        stand_in = None
    weights = w, b, gamma, beta, prelu, filters
    ctx.save_for_backward(stand_in, source, product, mean, rstd, *weights)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None) -> Sequence[Tensor | None]:
    """Return the gradients of the tensors that the forward operator was given."""
    if dy is None:
        return (None,) * _TENSORS
    plan, of_inputs, into = ctx.plan, ctx.needs_input_grad[:_TENSORS], ctx.into
    needed = needed_gradients(plan, of_inputs, into, ctx.has_residual)
    stand_in, source, product, mean, rstd, *parameters, prelu, filters = ctx.saved_tensors
    if ctx.auto and derivatives.differentiated_again():
        image = source
        if not ctx.saves_x:
            image = _IMPLEMENTATIONS[plan.impl].image(plan, ctx.x_shape, source, parameters[0])
            image = image if stand_in is None else derivatives.with_values(stand_in, image)
        return _gradients_again(ctx, dy, image, *parameters, prelu)
    if ctx.saves_x and plan.impl == "triton":
        # Hooks that keep saved tensors elsewhere (save_on_cpu) may return them in other strides.
        source = source.contiguous(memory_format=torch.channels_last)
    saved = [product, mean, rstd, *arguments.grouped(*parameters), prelu, filters]
    if into is not None or eager.hides_backward(dy, source, *saved):
        found = list(_bprop(plan, dy, ctx.x_shape, source, *saved, *needed, into=into))
    else:
        saved[:3] = _filled(saved[:3], dy)
        found = list(_backward(dy, ctx.x_shape, source, *saved, *needed, *plan))
    for place, parameter in enumerate(parameters, start=1):
        gradient = found[place]
        if gradient is not None and parameter is not None and gradient.dim() > parameter.dim():
            found[place] = gradient[0]
    if plan.halo == 0:
        found[-1] = dy  # an operator may not return its argument
    found += None, None  # of the filters in their layouts
    return [g if need else None for g, need in zip(found, of_inputs, strict=True)]


def _gradients_again(ctx: Any, dy: Tensor, *tensors: Tensor | None) -> Sequence[Tensor | None]:
    """Return the gradients of x, the parameters and the residual, with graphs of their own."""
    plan = ctx.plan._replace(impl="plain")
    residual = None
    if ctx.has_residual:  # its values do not matter
        residual = plan.without_halo(torch.zeros_like(dy), (2, 3)).requires_grad_()
    with runtime.no_autocast(dy):
        run = functools.partial(plain.split_block, plain.composed(plan))
        needed = ctx.needs_input_grad[: _TENSORS - 2]
        found = derivatives.gradients(run, (*tensors, residual), needed, dy)
    return *found, None, None  # of the filters in their layouts


def _backpropagate(ctx: Any, dy: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, dy), *(None,) * len(Plan._fields)


def _remember(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.kind = Plan(*inputs[-len(Plan._fields) :]).kind


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    also = " (conv_gemm)" if ctx.kind == "conv" else ""
    derivatives.refuse_second(_NAMES[ctx.kind] + also)


class _Eager(torch.autograd.Function):
    """The forward operator in eager mode; its parameters may lack the dimension of groups.

    Where backward adds gradients to buffers itself, the last argument is a parameter, for autograd
    to know that there is a backward pass.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, stand_in, plan, into, parameter, ctx.auto = args
        x, w, b, gamma, beta, prelu, residual, filters, _ = tensors
        rows = arguments.grouped(w, b, gamma, beta)
        y, *kept = _IMPLEMENTATIONS[plan.impl].fprop(plan, x, *rows, prelu, residual, filters)
        assert y is not None
        y = no_view(y) if plan.impl == "triton" else y
        _save(ctx, plan, args, (y, *kept), stand_in)
        if into is not None and parameter.requires_grad:
            ctx.into = into
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, dy), *(None,) * 5


_forward.register_autograd(_backpropagate, setup_context=_setup_context)
_backward.register_autograd(_refuse, setup_context=_remember)
