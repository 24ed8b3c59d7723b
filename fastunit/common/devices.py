"""Which device work is done on."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from fastunit.common.errors import UserError


def choose(device: torch.device | str | None = None, label: str = "device=") -> torch.device:
    """Return the device to work on; a GPU comes with its index.

    Args:
        device: "cpu", "cuda" (the first GPU), "cuda:N", or such a torch.device; None or "auto" is
            the first GPU where PyTorch sees one, else the CPU.
        label: what error messages write before the device.

    Raises:
        UserError: the device has another name, or is a GPU that is not there.
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
    """Return a context in which a GPU is CUDA's current device; of the CPU, one without effect."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
