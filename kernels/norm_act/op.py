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

from torch import Tensor, nn

from fastunit.kernels.common import checks, derivatives, eager
from fastunit.kernels.common.checks import Activation, Form, Norm, PadMode
from fastunit.kernels.common.runtime import Impl, choose
from fastunit.kernels.common.spellings import takes_pytorch_arguments
from fastunit.kernels.norm_act.aten import (
    NormActGradients,
    NormActOptions,
    norm_act_aten,
    norm_act_backward_aten,
    per_row,
)
from fastunit.kernels.norm_act.launch import norm_act_backward_triton, norm_act_triton
from fastunit.kernels.norm_act.operators import norm_act_eager, norm_act_operator
from fastunit.kernels.norm_act.plain import norm_act_plain, pays

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
    chosen, auto = choose(impl, x)
    if norm == act == "none" and gamma is beta is residual is None and not halo:
        return x
    fixed = float(slope) if act == "lrelu" else 0.0
    options = NormActOptions(norm, float(eps), act, fixed, halo, pad_mode)
    direct = eager.only_autograd(*tensors)
    # Without norm and halo there is nothing to recompute: autograd spares the operator's cost.
    if chosen == "plain" or (chosen == "aten" and norm == "none" and not halo):
        return norm_act_plain(*tensors, options, direct)
    if direct:
        if auto and x.device.type == "cpu" and pays(x.numel(), options):
            return norm_act_plain(*tensors, options, direct)
        return norm_act_eager(*tensors, options, chosen, auto)
    if derivatives.only_plain(impl, names[0], *tensors):
        return norm_act_plain(*tensors, options)
    return norm_act_operator(*tensors, *options, chosen)[0]


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
