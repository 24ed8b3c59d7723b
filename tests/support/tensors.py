"""Random tensors, and parts of dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def images(*shape: int) -> Tensor:
    """Return float64 values between -1 and 1."""
    return torch.rand(shape, dtype=torch.float64) * 2 - 1


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal values, by default of float64."""
    return torch.randn(shape, dtype=dtype)


def under(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the values whose names begin with the prefix, by what follows it."""
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
