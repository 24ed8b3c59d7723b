"""What the benchmarks share: options, the device, and the words that make a number comparable."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="on a CPU also the benchmarks that take long: larger images, compiled opponents",
    )


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Store versions, threads and the GPU beside the timings."""
    machine_info["torch"] = torch.__version__
    machine_info["fastunit"] = metadata.version("fastunit")
    machine_info["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
