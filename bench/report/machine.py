"""What results depend on apart from the code: processor, GPU, threads, versions, load."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.model import peaks

ROOT = Path(__file__).resolve().parents[2]
QUIET = 0.5  # a machine is idle if the load average over a minute is below this
_load = os.getloadavg()[0]  # before the benchmarks start


def describe(cpu_flags: list[str]) -> dict[str, Any]:
    """Return a description to store in the results; `cpu_flags` are from /proc/cpuinfo."""
    instructions = [torch.backends.cpu.get_cpu_capability()]
    instructions += ["AMX"] if "amx_tile" in cpu_flags else []
    found = {
        "instructions": ", ".join(instructions),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(_load, 2),
    }
    for package in ("fastunit", "torch", "triton"):
        with suppress(metadata.PackageNotFoundError):  # Triton is for Linux only
            found[package] = metadata.version(package)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
        found |= peaks.measured()._asdict() | _driver()
    return found


def processor(machine: Mapping[str, Any]) -> str:
    """Return a processor's name and the vector and matrix instructions that PyTorch may use."""
    name = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown machine")
    instructions = machine.get("instructions")
    return f"{name} ({instructions})" if instructions else name


def commit(run: Mapping[str, Any]) -> str:
    """Return a run's abbreviated commit; empty if unknown."""
    found = run.get("commit_info", {})
    if found.get("id") in (None, "unknown", "unversioned"):
        return ""
    return found["id"][:10] + (" with changes" if found.get("dirty") else "")


def load(machine: Mapping[str, Any]) -> str:
    """Return the load before the benchmarks, with a warning if it was high; empty if unknown."""
    value = machine.get("load")
    if value is None:
        return ""
    return f"{value:.2f} before" + ("" if value < QUIET else ": NOT QUIET, something else ran")


def commit_info() -> dict[str, Any]:
    """Return the commit of this checkout, independent of the working directory."""
    try:
        commit_id, time = _git("log", "-1", "--format=%H %cI").split()
        dirty, branch = _git("status", "--porcelain", "-uno"), _git("branch", "--show-current")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return {"id": "unknown", "error": repr(error)}
    return {"id": commit_id, "time": time, "dirty": bool(dirty), "branch": branch or "(detached)"}


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _driver() -> dict[str, str]:
    """Return the driver's version and the clocks of the first GPU, as nvidia-smi reads them."""
    fields = {"driver": "driver_version", "sm_clock": "clocks.sm", "memory_clock": "clocks.mem"}
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields.values())}"]
    try:
        found = subprocess.run(
            [*command, "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return {"driver": f"not known: {error}"}
    return dict(zip(fields, found.stdout.strip().split(", "), strict=True))
