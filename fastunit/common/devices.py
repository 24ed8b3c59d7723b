"""Device selection."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from fastunit.common.errors import UserError


def choose(device: torch.device | str | None = None, label: str = "device=") -> torch.device:
    """Return a torch.device; a GPU always has an index.

    Args:
        device: "cpu", "cuda" (the first GPU), "cuda:N", or such a torch.device; None or "auto" is
            the first GPU if PyTorch sees one, else the CPU.
        label: prefix of the device's name in error messages.

    Raises:
        UserError: an unknown name, or a GPU that does not exist.
    """
    name = "auto" if device is None else str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"{label}{name} must be auto, cpu, cuda or a GPU such as cuda:1")
    if not torch.cuda.is_available():
        raise UserError(f"{label}{name}: PyTorch sees no GPU here; choose {label}cpu")
    index, count = int(match[1] or 0), torch.cuda.device_count()
    if index >= count:
        raise UserError(f"{label}{name}: there is only cuda:0 to cuda:{count - 1} here")
    return torch.device("cuda", index)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a GPU is CUDA's current device; a null context for the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
