"""Device selection."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch

from fastunit.common.errors import UserError

_GROUP = Path("/sys/fs/cgroup")


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


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device.

    On a GPU what PyTorch keeps for reuse counts as free; on the CPU what Linux can free without
    swapping, within the limit of the control group (version 2), whose file cache counts as free; 2
    GiB where it does not say.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = [proc_bytes("/proc/meminfo", "MemAvailable")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = ((_GROUP / name).read_text() for name in ("memory.max", "memory.current"))
        cache = re.search(r"^inactive_file (\d+)$", (_GROUP / "memory.stat").read_text(), re.M)
        free.append(max(0, int(limit) - int(used) + int(cache[1] if cache else 0)))
    return min((count for count in free if count is not None), default=2**31)


def proc_bytes(file: str, field: str) -> int | None:
    """Return a field of /proc/meminfo or /proc/self/status in bytes; None if it is not there."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(file).read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
