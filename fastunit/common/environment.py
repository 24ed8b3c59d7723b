"""What results depend on apart from the settings: device, versions, commit, command line."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fastunit", "torch", "triton", "numpy", "nvidia-dali-cuda130")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe this process on a device, as values for JSON; None if unknown."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    versions["torch"] = str(torch.__version__)  # with its build, such as +cpu
    versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit(),
        "command": sys.argv,
    }


def commit() -> str | None:
    """Return the commit of the checkout that the code runs from, None if it is not a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    """Return a device's name, with the GPU's model or the CPU's number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"
