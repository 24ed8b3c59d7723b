"""Compute precision of convolutions and matmuls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastunit.common.choices import PRECISIONS, Precision
from fastunit.common.errors import ConfigError


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Resolve "auto" for a device: bf16 on GPUs that support it (Ampere and later), else fp32.

    Raises:
        ConfigError: an unknown precision, or tf32 without such a GPU.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "auto":
        return "bf16" if on_gpu else "fp32"
    if precision == "tf32" and not on_gpu:
        raise ConfigError(
            f"precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or more, not {device}; "
            "use precision=fp32 or auto"
        )
    return precision


@contextmanager
def matmul_settings(precision: Precision) -> Iterator[None]:
    """Set PyTorch's tf32 switches to a resolved precision inside the block; for backward too.

    "inherit" changes nothing.
    """
    # PyTorch puts an object that has `conv` in this module's place.
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    backends: tuple[Any, ...] = (conv, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    wanted = before
    if precision != "inherit":
        wanted = ["tf32" if precision == "tf32" else "ieee"] * len(backends)
    try:
        for backend, value in zip(backends, wanted, strict=True):
            backend.fp32_precision = value
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Multiply in a resolved precision inside the block; a forward pass, as autocast is for.

    bf16 is autocast: operands are rounded to bfloat16; accumulation, statistics, losses and
    weights stay float32. float64 networks are left alone. "inherit" changes nothing: autocast
    and tf32 are as PyTorch's own switches say.
    """
    if precision == "inherit":
        yield
        return
    # The weights' own casts are kept by fastunit.kernels; PyTorch's cache outlives updates.
    bf16 = torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )
    with matmul_settings(precision), bf16:
        yield
