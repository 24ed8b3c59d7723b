"""Argument checks the operations share; each raises ValueError naming both offending values."""

from __future__ import annotations

from torch import Tensor

PAD_MODES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}
NORMS = ("none", "in", "ln")
ACTS = ("none", "relu", "lrelu", "prelu", "selu", "tanh")


def choice(name: str, value: str, choices: object) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def image(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{name} must be [N, C, H, W], not of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a floating dtype, not {x.dtype}")


def filters(x: Tensor, w: Tensor, b: Tensor | None) -> None:
    """Check filters [K, C, R, S] and a bias [K] against an image."""
    if w.dim() != 4 or w.shape[1] != x.shape[1]:
        raise ValueError(
            f"w must be [K, C, R, S] with C={x.shape[1]} as in x, not of shape {tuple(w.shape)}"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"b must be of shape {(w.shape[0],)}, not {tuple(b.shape)}")


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
