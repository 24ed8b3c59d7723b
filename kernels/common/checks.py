"""Argument checks the operations share; each raises ValueError naming both offending values."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

PadMode = Literal["zero", "reflect", "replicate"]
Norm = Literal["none", "in", "ln"]
Activation = Literal["none", "relu", "lrelu", "prelu", "selu", "tanh"]
PAD_MODES, NORMS, ACTS = get_args(PadMode), get_args(Norm), get_args(Activation)


def choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in tuple(choices):  # a tuple takes unhashable values too
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def image(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} must be [N, C, H, W], not of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, not {x.dtype}")


def slope(x: Tensor, act: str, value: float | Tensor) -> None:
    """Check a negative slope: a tensor [1] or [C] for prelu, a float for lrelu."""
    is_tensor = isinstance(value, Tensor)
    if act == "prelu" and not (is_tensor and value.shape in ((1,), (x.shape[1],))):
        raise ValueError(
            f"slope must be a tensor [1] or [{x.shape[1]}] for prelu, not {_shown(value)}"
        )
    if act == "lrelu" and is_tensor:
        raise ValueError(
            f"slope must be a float for lrelu, not {_shown(value)}; prelu takes a tensor"
        )
    if act == "prelu" and isinstance(value, Tensor):
        _parameter_dtype("slope", value, x)


def _shown(value: object) -> str:
    # Only where it is wrong: torch.compile has no repr of a float that it takes for dynamic.
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def parameter_rows(x: Tensor, **parameters: Tensor | None) -> None:
    """Check parameters [C], or [G, C] with G dividing N, of x's dtype or float32."""
    samples, channels = x.shape[:2]
    for name, value in parameters.items():
        if value is None:
            continue
        rows = value.shape[0] if value.dim() == 2 else 1
        if value.shape not in ((channels,), (rows, channels)) or rows < 1 or samples % rows:
            raise ValueError(
                f"{name} must be of shape {(channels,)}, or [G, {channels}] with G dividing "
                f"N={samples}, not {tuple(value.shape)}"
            )
        _parameter_dtype(name, value, x)


def _parameter_dtype(name: str, value: Tensor, x: Tensor) -> None:
    if value.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"{name} must be {x.dtype}, as x, or float32, not {value.dtype}")


def residual(x: Tensor, value: Tensor | None) -> Tensor | None:
    """Check a residual of x's shape and dtype; return it, under autocast in x's dtype."""
    if value is None:
        return None
    if value.shape != x.shape:
        raise ValueError(
            f"residual of shape {tuple(value.shape)} must have x's shape {tuple(x.shape)}"
        )
    if value.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
        return value.to(x.dtype)
    if value.dtype != x.dtype:
        raise ValueError(f"residual of {value.dtype} must have x's dtype {x.dtype}")
    return value


def filters(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    """Check filters [K, C, R, S] and a bias [K] against an image."""
    if w.dim() != 4 or w.shape[1] != x.shape[1]:
        raise ValueError(
            f"w must be [K, C, R, S] with C={x.shape[1]} as in x, not of shape {tuple(w.shape)}"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"b must be of shape {(w.shape[0],)}, not {tuple(b.shape)}")


def window(x: Tensor, w: Tensor, pad: int) -> None:
    """Check that filters fit an image with a halo of `pad` pixels at least once."""
    if any(size + 2 * pad < taps for size, taps in zip(x.shape[2:], w.shape[2:], strict=True)):
        (height, width), (rows, columns) = x.shape[2:], w.shape[2:]
        raise ValueError(
            f"a {rows}x{columns} filter does not fit an image of {height}x{width} padded by {pad}"
        )


def padding(x: Tensor, pad: int, pad_mode: str) -> None:
    """Check that a halo of `pad` pixels can be made from x."""
    choice("pad_mode", pad_mode, PAD_MODES)
    if pad < 0:
        raise ValueError(f"padding={pad} must not be negative")
    if pad_mode == "replicate" and pad and 0 in x.shape[2:]:
        height, width = x.shape[2:]
        raise ValueError(f"replicate padding of {pad} needs a pixel, not an image {height}x{width}")
    if pad_mode == "reflect" and pad >= min(x.shape[2:]):
        height, width = x.shape[2:]
        raise ValueError(
            f"reflect padding of {pad} needs an image of {pad + 1} pixels a side or more, "
            f"not {height}x{width}"
        )
