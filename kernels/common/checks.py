"""Argument checks the operations share; each raises ValueError naming both offending values.

They take shapes and dtypes, not tensors, so that `eager.cached` can remember what has passed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

PadMode = Literal["zero", "reflect", "replicate"]
Norm = Literal["none", "in", "ln"]
FusedActivation = Literal["none", "relu", "lrelu", "prelu", "selu", "tanh"]
# What the public operations take: `spellings` applies the others after them.
Activation = FusedActivation | Literal["gelu", "silu", "sigmoid", "hardswish"]
# Devices that have autocast; asked once, since torch.compile (2.11) cannot trace the question.
AUTOCAST = frozenset(
    kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)
)
PAD_MODES, NORMS, ACTS = get_args(PadMode), get_args(Norm), get_args(FusedActivation)


class Form(NamedTuple):
    """What the checks ask of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def form(tensor: Tensor | None) -> Form | None:
    return None if tensor is None else Form(tensor.shape, tensor.dtype)


def choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in tuple(choices):  # a tuple takes unhashable values too
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r} must be an integer, the same for both axes")


def image(name: str, x: Form) -> None:
    if len(x.shape) != 4:
        raise ValueError(f"{name} must be [N, C, H, W], not of shape {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise ValueError(f"{name} must be of a floating dtype, not {x.dtype}")


def slope(x: Form, act: str, value: float | Form) -> None:
    """Check a negative slope: a tensor [1] or [C] for prelu, a float for lrelu."""
    if act == "prelu":
        if not isinstance(value, Form) or value.shape not in ((1,), (x.shape[1],)):
            raise ValueError(
                f"slope must be a tensor [1] or [{x.shape[1]}] for prelu, not {_shown(value)}"
            )
        _parameter_dtype("slope", value, x)
    elif act == "lrelu" and isinstance(value, Form):
        raise ValueError(
            f"slope must be a float for lrelu, not {_shown(value)}; prelu takes a tensor"
        )


def _shown(value: float | Form) -> str:
    # Only where it is wrong: torch.compile has no repr of a float that it takes for dynamic.
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Form) else repr(value)


def parameter_rows(x: Form, **parameters: Form | None) -> None:
    """Check parameters [C], or [G, C] with G dividing N, of x's dtype or float32."""
    samples, channels = x.shape[:2]
    for name, value in parameters.items():
        if value is None:
            continue
        rows = value.shape[0] if len(value.shape) == 2 else 1
        if value.shape not in ((channels,), (rows, channels)) or rows < 1 or samples % rows:
            raise ValueError(
                f"{name} must be of shape {(channels,)}, or [G, {channels}] with G dividing "
                f"N={samples}, not {tuple(value.shape)}"
            )
        _parameter_dtype(name, value, x)


def _parameter_dtype(name: str, value: Form, x: Form) -> None:
    if value.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"{name} must be {x.dtype}, as x, or float32, not {value.dtype}")


def residual(x: Form, value: Tensor) -> Tensor:
    """Check a residual of x's shape and dtype; return it, under autocast in x's dtype."""
    if value.shape != x.shape:
        raise ValueError(
            f"residual of shape {tuple(value.shape)} must have x's shape {tuple(x.shape)}"
        )
    if value.dtype == x.dtype:
        return value
    if (kind := value.device.type) in AUTOCAST and torch.is_autocast_enabled(kind):
        return value.to(x.dtype)
    raise ValueError(f"residual of {value.dtype} must have x's dtype {x.dtype}")


def window(size: Sequence[int], taps: Sequence[int], pad: int) -> None:
    """Check that filters fit an image (H, W) with a halo of `pad` pixels at least once."""
    if any(length + 2 * pad < count for length, count in zip(size, taps, strict=True)):
        (height, width), (rows, columns) = size, taps
        raise ValueError(
            f"a {rows}x{columns} filter does not fit an image of {height}x{width} padded by {pad}"
        )


def padding(size: Sequence[int], pad: int, pad_mode: str) -> None:
    """Check that a halo of `pad` pixels can be made from an image (H, W)."""
    choice("pad_mode", pad_mode, PAD_MODES)
    if pad < 0:
        raise ValueError(f"padding={pad} must not be negative")
    height, width = size
    if pad_mode == "replicate" and pad and 0 in (height, width):
        raise ValueError(f"replicate padding of {pad} needs a pixel, not an image {height}x{width}")
    if pad_mode == "reflect" and pad >= min(height, width):
        raise ValueError(
            f"reflect padding of {pad} needs an image of {pad + 1} pixels a side or more, "
            f"not {height}x{width}"
        )
