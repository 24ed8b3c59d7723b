"""What the benchmarks share: options, the device, and the words that make a number comparable."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata
from typing import Any

import pytest
import torch

from bench import ceilings, opponents

_started = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.addoption
    add(
        "--full",
        action="store_true",
        help="also the benchmarks that take long: larger images, all compiled opponents",
    )
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="skip the benchmarks that would begin later than this",
    )
    add(
        "--seconds",
        type=float,
        default=25.0,
        help="for the rounds of a comparison of opponents; default %(default)s",
    )
    add(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="leave opponents out that take longer to compile and warm up; 0: compile none",
    )
    add(
        "--ceilings",
        metavar="TFLOP/s,GB/s",
        help="the GPU's rates of products and copies, if they have been measured already",
    )


def pytest_configure(config: pytest.Config) -> None:
    if given := config.getoption("--ceilings"):
        try:
            tflop_per_s, gb_per_s = map(float, given.split(","))
        except ValueError:
            raise pytest.UsageError(
                f"--ceilings {given!r} must be two numbers, for instance 800,3000"
            ) from None
        ceilings.use(ceilings.Ceilings(tflop_per_s, gb_per_s))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the budget leaves no time for."""
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - _started > budget:
        pytest.skip(f"the budget of {budget:g} s is spent")


@pytest.fixture
def compare(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """Return `opponents.compare` with the command line's seconds and patience."""
    seconds, patience = map(pytestconfig.getoption, ("--seconds", "--patience"))
    return partial(opponents.compare, benchmark, seconds=seconds, patience=patience or None)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Store versions, threads, and the GPU with what it can do, beside the timings."""
    for package in ("fastunit", "torch", "triton"):
        with suppress(metadata.PackageNotFoundError):  # Triton is for Linux only
            machine_info[package] = metadata.version(package)
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
        machine_info["cudnn"] = torch.backends.cudnn.version()
        machine_info |= ceilings.measured()._asdict() | _driver()


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
