"""y = pad(act(gamma * norm(x) + beta) + residual): what follows a convolution, in one operation.

Norms: "in" is instance norm (Ulyanov et al. 2016; biased variance, eps under the root); "ln" is
the UNIT release's layer norm, over (C, H, W) of each sample with the *unbiased* standard
deviation and eps added to it. With gamma and beta per sample, "in" is AdaIN (Huang and Belongie
2017). On a GPU forward is three launches (statistics, their merge, everything else; the last
alone without a norm), backward too. Backward saves x and the statistics and recomputes the rest.

The pieces, which the convolution blocks use too: `NormActOptions` holds the options;
`norm_act_aten` and `norm_act_backward_aten` run on PyTorch's kernels, `norm_act_triton` and
`norm_act_backward_triton` on ours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastunit.kernels.common import checks, derivatives, eager
from fastunit.kernels.common.checks import Activation, Form, Norm, PadMode
from fastunit.kernels.common.frame import channels_last, dense, memory_format, no_view, owned
from fastunit.kernels.common.runtime import Impl, choose_impl, is_auto
from fastunit.kernels.common.spellings import takes_pytorch_arguments
from fastunit.kernels.norm_act.aten import (
    NormActGradients,
    NormActOptions,
    norm_act_aten,
    norm_act_backward_aten,
    per_row,
)
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton
from fastunit.kernels.norm_act.plain import norm_act_plain, pays
from fastunit.kernels.norm_act.rows import Rows

__all__ = [
    "NormActGradients",
    "NormActOptions",
    "norm_act",
    "norm_act_aten",
    "norm_act_backward_aten",
    "norm_act_backward_triton",
    "norm_act_triton",
    "per_row",
]


_NAME = "norm_act (instance_norm_act, and the norm of a block)"
_PARAMETERS = "Tensor? gamma, Tensor? beta, Tensor? slope"
_OPTIONS = "str norm, float eps, str act, float negative, int halo, str pad_mode, str impl"


@takes_pytorch_arguments
def norm_act(
    x: Tensor,
    *,
    norm: Norm = "none",
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    act: Activation = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    halo: int = 0,
    pad_mode: PadMode = "zero",
    impl: Impl = "auto",
) -> Tensor:
    """Normalise, scale, activate, add: ``pad(act(gamma * norm(x) + beta) + residual)``.

    Args:
        x: [N, C, H, W], floating dtype, any memory format.
        norm: "none", "in" (over H, W) or "ln" (over C, H, W); see the module's docstring.
        gamma: scale after the norm, of x's dtype or float32: [C], or [G, C] with G dividing N,
            where sample n takes row n // (N // G). None leaves it out.
        beta: shift after the norm, likewise.
        eps: added to the variance ("in") or the standard deviation ("ln").
        act: "none", "relu", "lrelu", "prelu", "selu" or "tanh"; or, by PyTorch after the operation
            and without a halo, "gelu", "silu", "sigmoid" or "hardswish".
        slope: negative slope; a float for lrelu, a tensor [1] or [C], of x's dtype or float32,
            for prelu.
        residual: of x's shape and dtype, added after the activation. Under autocast it is cast.
        halo: pixels to add on each side of the result.
        pad_mode: what they hold: "zero", "reflect" or "replicate".
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.

    Returns:
        [N, C, H + 2 * halo, W + 2 * halo] of x's dtype; channels_last from Triton, else in x's
            memory format. x itself where nothing is to be done.

    Statistics, sums and everything between load and store are fp32, or float64 for a float64 x.
    Differentiable in x, gamma, beta, slope (as a tensor) and residual, with gradients in their
    dtypes; any number of times and in both modes, but for "triton" and, with a norm or halo,
    "aten" by name: once, in reverse mode. Saves x and two numbers per sample and channel.
    Triton copies an x that is not channels_last. The same inputs give the same bits. Compiles
    with ``fullgraph=True``; may be captured in a CUDA graph.

    Raises:
        ValueError: a shape, a dtype, an option or impl is not one of the above.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    return _run(
        ("norm_act", "gamma", "beta"), x, gamma, beta, residual, slope, norm=norm, eps=eps, act=act,
        halo=halo, pad_mode=pad_mode, impl=impl,
    )  # fmt: skip


def _run(
    names: tuple[str, str, str],
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    slope: float | Tensor,
    *,
    norm: Norm,
    eps: float,
    act: str,
    impl: Impl,
    halo: int = 0,
    pad_mode: PadMode = "zero",
) -> Tensor:
    """Check and run what was called, by its name and those of scale and shift in `names`."""
    form = checks.form
    given = form(slope) if isinstance(slope, Tensor) else slope
    _check(form(x), form(gamma), form(beta), given, norm, act, halo, pad_mode, names)
    if residual is not None:
        residual = checks.residual(Form(x.shape, x.dtype), residual)
    learnt = slope if act == "prelu" and isinstance(slope, Tensor) else None
    tensors = x, gamma, beta, learnt, residual
    chosen = choose_impl(impl, x)
    if norm == act == "none" and gamma is beta is residual is None and not halo:
        return x
    fixed = float(slope) if act == "lrelu" else 0.0
    options = NormActOptions(norm, float(eps), act, fixed, halo, pad_mode)
    # Without norm and halo there is nothing to recompute: autograd spares the operator's cost.
    if chosen == "plain" or (chosen == "aten" and norm == "none" and not halo):
        return norm_act_plain(*tensors, options)
    if derivatives.only_plain(impl, names[0], *tensors):
        return norm_act_plain(*tensors, options)
    if eager.only_autograd(*tensors):
        auto = is_auto(impl)
        if auto and pays(x, options):
            return norm_act_plain(*tensors, options)
        return norm_act_eager(*tensors, options, chosen, auto)
    return _norm_act(*tensors, *options, chosen)[0]


@eager.cached
def _check(
    x: Form,
    gamma: Form | None,
    beta: Form | None,
    slope: float | Form,
    norm: str,
    act: str,
    halo: int,
    pad_mode: str,
    names: tuple[str, str, str],
) -> None:
    checks.image("x", x)
    checks.choice("norm", norm, checks.NORMS)
    checks.choice("act", act, checks.ACTS)
    checks.slope(x, act, slope)
    checks.parameter_rows(x, **{names[1]: gamma, names[2]: beta})
    checks.integer("halo", halo)
    checks.padding(x.shape[2:], halo, pad_mode)


@takes_pytorch_arguments
def instance_norm_act(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    act: Activation = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Return ``act(weight * (x - mean) / sqrt(var + eps) + bias) + residual``, for any network.

    PyTorch's own instance norm drops the channels_last memory format and normalises in one pass,
    activates in another and adds in a third. `norm_act` is the same operation under UNIT's names.

    Mean and biased variance are those of each sample and channel, over (H, W): what
    ``nn.InstanceNorm2d`` computes in training and, without running statistics, in evaluation.

    Args:
        x: [N, C, H, W], floating dtype; channels_last is fastest on a GPU.
        weight: scale [C], of x's dtype or float32; see `arguments_of`. None leaves it out.
        bias: shift [C], likewise.
        eps: added to the variance.
        act: "none", "relu", "lrelu", "prelu", "selu" or "tanh"; or, by PyTorch after the operation,
            "gelu", "silu", "sigmoid" or "hardswish".
        slope: negative slope; a float for lrelu, a tensor [1] or [C] for prelu.
        residual: of x's shape and dtype, added after the activation.
        impl: "auto", "triton", "aten" or "plain"; see `fastunit.kernels.common.runtime`.

    Returns:
        [N, C, H, W] of x's dtype. Memory format, derivatives and determinism are those of
            `norm_act`.

    Raises:
        ValueError: a shape, a dtype, an option or impl is not one of the above.
        NotImplementedError: impl is "triton" or "aten", under forward-mode AD or a gradient of
            torch.func.
        RuntimeError: a second derivative of "triton" or "aten", or of compiled code.
    """
    names = "instance_norm_act", "weight", "bias"
    return _run(names, x, weight, bias, residual, slope, norm="in", eps=eps, act=act, impl=impl)


def arguments_of(module: nn.InstanceNorm2d) -> dict[str, Tensor | float | None]:
    """Return weight, bias and eps of a module, for `instance_norm_act`.

    Args:
        module: of which each image is normalised by its own statistics.

    Returns:
        Keyword arguments, for ``instance_norm_act(x, **arguments_of(module))``.

    Raises:
        ValueError: the module tracks running statistics, which would be ignored.
    """
    if module.track_running_stats:
        raise ValueError(
            "track_running_stats=True: instance_norm_act normalises by each image's own "
            "statistics; use nn.InstanceNorm2d(..., track_running_stats=False)"
        )
    return {"weight": module.weight, "bias": module.bias, "eps": module.eps}


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


_norm_act = torch.library.custom_op(
    "fastunit::norm_act",
    lambda *args: _fprop(NormActOptions(*args[5:11]), args[11], *args[:5]),
    mutates_args=(),
    schema=f"(Tensor x, {_PARAMETERS}, Tensor? residual, {_OPTIONS})"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
)


@_norm_act.register_fake
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
    dgamma, dbeta, dslope = (None if g is None or p is None else per_row(g, p) for g, p in sums_of)
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


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
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
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


def _gradients_again(
    ctx: Any,
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the forward operator's tensors, with graphs of their own."""
    residual = torch.zeros_like(x, requires_grad=True) if ctx.has_residual else None
    tensors = x, gamma, beta, slope, residual
    run = functools.partial(norm_act_plain, options=ctx.norm_act)
    return tuple(derivatives.gradients(run, tensors, ctx.needs_input_grad[:5], dy))


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


_norm_act.register_autograd(_backward, setup_context=_setup_context)
_norm_act_backward.register_autograd(_refuse)


def _pixels(x: Tensor) -> Tensor:
    """View an image [N, C, H, W] as [N, H, W, C], contiguous but for up to 4 channels."""
    return x.permute(0, 2, 3, 1) if x.shape[1] <= 4 else dense(x)


def _result_format(x: Tensor, impl: str) -> torch.memory_format:
    """Return the result's: channels_last from Triton, else x's."""
    return torch.channels_last if impl == "triton" else memory_format(x)
