"""Arguments as PyTorch's modules and functions have them, which the operations take too.

Strides and paddings as pairs of equal numbers, "zeros" for "zero", "leaky_relu" for "lrelu", one
image [C, H, W], and the activations that no kernel has: PyTorch's own follow the operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common import checks

P = ParamSpec("P")
_NUMBERS = ("stride", "padding", "output_padding")
_OTHER_NAMES = {
    "act": {"leaky_relu": "lrelu", None: "none"},
    "norm": {None: "none"},
    "pad_mode": {"zeros": "zero", "constant": "zero"},
    "halo_mode": {"zeros": "zero", "constant": "zero"},
}
# Activations of PyTorch's that follow the operation, which then has none and adds no residual.
_ACTIVATIONS = {
    "gelu": F.gelu, "silu": F.silu, "sigmoid": F.sigmoid, "hardswish": F.hardswish
}  # fmt: skip
ACTS = checks.ACTS + tuple(_ACTIVATIONS)


def takes_pytorch_arguments(operation: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let an operation of one image batch take the arguments above.

    Raises:
        ValueError: from a call: a pair has two different numbers; the activation is unknown, or
            one that cannot be followed by a halo.
    """

    @functools.wraps(operation)
    def call(*args: Any, **options: Any) -> Tensor:
        for name, value in options.items():
            if name in _NUMBERS and isinstance(value, (tuple, list)):
                options[name] = _one(name, value)
            elif name in _OTHER_NAMES and (value is None or isinstance(value, str)):
                options[name] = _OTHER_NAMES[name].get(value, value)
        act = options.get("act", "none")
        if act not in checks.ACTS:
            checks.choice("act", act, ACTS)
            return _activated(call, _ACTIVATIONS[act], args, options)
        x = args[0] if args else options["x"]
        if not isinstance(x, Tensor) or x.dim() != 3:
            return operation(*args, **options)
        if args:
            args = x[None], *args[1:]
        else:
            options["x"] = x[None]
        if isinstance(options.get("residual"), Tensor):
            options["residual"] = options["residual"][None]
        return operation(*args, **options)[0]

    return call


def _activated(
    operation: Callable[..., Tensor],
    activation: Callable[[Tensor], Tensor],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Tensor:
    """Call an operation without its activation and residual, and apply these."""
    if options.get("halo"):
        raise ValueError(f"act={options['act']!r} takes no halo; add it to the result")
    residual = options.pop("residual", None)
    y = activation(operation(*args, **options | {"act": "none"}))
    if residual is None:
        return y
    return y + checks.residual(checks.Form(y.shape, y.dtype), residual)


def _one(name: str, value: tuple[Any, ...] | list[Any]) -> Any:
    if len(value) not in (1, 2) or any(each != value[0] for each in value):
        raise ValueError(f"{name}={value!r} must be the same for both axes")
    return value[0]
