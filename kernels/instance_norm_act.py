"""Instance norm, activation and skip connection of any network, in one operation.

PyTorch's own instance norm drops the channels_last memory format and normalises in one pass,
activates in another and adds in a third. `norm_act` is the same operation under UNIT's names.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastunit.kernels import derivatives
from fastunit.kernels.norm_act import norm_act


def instance_norm_act(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float | Tensor = 0.2,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return ``act(weight * (x - mean) / sqrt(var + eps) + bias) + residual``.

    Mean and biased variance are those of each sample and channel, over (H, W): what
    ``nn.InstanceNorm2d`` computes in training and, without running statistics, in evaluation.

    Args:
        x: [N, C, H, W], floating dtype; channels_last is fastest on a GPU.
        weight, bias: [C], of x's dtype or float32; see `arguments_of`.
        eps, act, slope, residual, impl: as in `norm_act`, as are the result, its memory format,
            dtypes, derivatives and determinism.

    Raises:
        ValueError, NotImplementedError, RuntimeError: as `norm_act`.
    """
    derivatives.only_reverse("instance_norm_act", x, weight, bias, slope, residual)
    return norm_act(
        x,
        norm="in",
        gamma=weight,
        beta=bias,
        eps=eps,
        act=act,
        slope=slope,
        residual=residual,
        impl=impl,
    )


def arguments_of(module: nn.InstanceNorm2d) -> dict[str, Tensor | float | None]:
    """Return weight, bias and eps of a module, for `instance_norm_act`.

    Raises:
        ValueError: the module tracks running statistics, which would be ignored.
    """
    if module.track_running_stats:
        raise ValueError(
            "track_running_stats=True: instance_norm_act normalises by each image's own "
            "statistics; use nn.InstanceNorm2d(..., track_running_stats=False)"
        )
    return {"weight": module.weight, "bias": module.bias, "eps": module.eps}
