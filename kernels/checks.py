"""Argument checks the operations share; each raises ValueError naming both offending values."""

from __future__ import annotations

from torch import Tensor

PAD_MODES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
NORMS = ("none", "in", "ln")
ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")


def choice(name: str, value: str, choices: object) -> None:
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
    found = f"a tensor of shape {tuple(value.shape)}" if is_tensor else repr(value)
    if act == "prelu" and not (is_tensor and value.shape in ((1,), (x.shape[1],))):
        raise ValueError(f"slope must be a tensor [1] or [{x.shape[1]}] for prelu, not {found}")
    if act == "lrelu" and is_tensor:
        raise ValueError(f"slope must be a float for lrelu, not {found}; prelu takes a tensor")


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
    if pad_mode == "reflect" and pad >= min(x.shape[2:]):
        height, width = x.shape[2:]
        raise ValueError(
            f"reflect padding of {pad} needs an image of {pad + 1} pixels a side or more, "
            f"not {height}x{width}"
        )
