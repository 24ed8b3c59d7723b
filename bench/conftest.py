"""pytest in this folder: command-line options, selection of benchmarks, shared fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastunit.common import cli
from fastunit.common.errors import DataError

with cli.needs("bench"):
    import pytest_benchmark  # noqa: F401
    import torch

    from bench.model import peaks
    from bench.report import machine, markdown, selection
    from bench.report.progress import Progress
    from bench.step import contenders

_started = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("fastunit's benchmarks").addoption
    add("--full", action="store_true", help="all benchmarks, which takes hours on a CPU")
    add(
        "--compare",
        type=Path,
        metavar="JSON",
        help="an earlier run to compare with: bench/results/*.json, or what --benchmark-json or "
        "--benchmark-autosave wrote",
    )
    add(
        "--results",
        type=Path,
        metavar="STEM",
        help="where to write STEM.json, .md and .png; default: bench/results/latest, or partial "
        "if not all throughput benchmarks ran",
    )
    add(
        "--smoke",
        action="store_true",
        help="tiny networks and few rounds, to check that everything runs; figures mean nothing",
    )
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="skip benchmarks that would start later than this",
    )
    add(
        "--seconds",
        type=float,
        default=15.0,
        help="for the rounds of a comparison; default %(default)s",
    )
    add(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="leave out contenders that take longer to compile and warm up; 0: compile none",
    )
    add(
        "--ceilings",
        metavar="TFLOP/s,GB/s",
        help="the GPU's matmul and copy rates, if they were measured before",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in selection.MARKERS:
        config.addinivalue_line("markers", marker)
    if (config.getoption("numprocesses", None) or 0) != 0:
        raise pytest.UsageError("benchmarks that run in parallel disturb each other: omit -n")
    if given := config.getoption("--ceilings"):
        peaks.use(_ceilings(given))
    earlier = None
    if path := config.getoption("--compare"):
        try:
            earlier = markdown.read(path)
        except DataError as error:
            raise pytest.UsageError(f"--compare: {error}") from None
    if not config.getoption("--benchmark-quiet"):
        config.pluginmanager.register(Progress(config, earlier), "fastunit-progress")
        # Our table has more columns; pytest-benchmark's is for single files and its comparisons.
        wanted = config.getoption("--full") or config.getoption("--benchmark-compare")
        config.option.benchmark_quiet = not wanted and not selection.names_files(config)


def _ceilings(given: str) -> peaks.Ceilings:
    try:
        tflop_per_s, gb_per_s = map(float, given.split(","))
    except ValueError:
        raise pytest.UsageError(
            f"--ceilings {given!r} must be two numbers, for instance 800,3000"
        ) from None
    return peaks.Ceilings(tflop_per_s, gb_per_s)


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long benchmarks that were not asked for; `Progress` lists them at the end."""
    items[:], left = selection.split(config, items)
    if left:
        config.hook.pytest_deselected(items=left)
    if progress := config.pluginmanager.get_plugin("fastunit-progress"):
        progress.left = left


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip benchmarks once the time budget is spent."""
    budget = item.config.getoption("--budget")
    if budget is not None and time.monotonic() - _started > budget:
        pytest.skip(f"the budget of {budget:g} s is spent")


@pytest.fixture
def compare(benchmark: Any, pytestconfig: pytest.Config) -> Callable[..., None]:
    """Return `contenders.compare` with the command line's seconds and patience."""
    seconds, patience = map(pytestconfig.getoption, ("--seconds", "--patience"))
    run = partial(contenders.compare, benchmark, patience=patience or None)
    if not pytestconfig.getoption("--smoke"):
        return partial(run, seconds=seconds)

    def smoke(task: str, found: dict, images: int, **options: Any) -> None:
        run(task, {name: o.tiny() for name, o in found.items()}, images, seconds=0, **options)

    return smoke


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Store versions, threads, and the GPU with its measured ceilings, in the results."""
    machine_info |= machine.describe(machine_info.get("cpu", {}).get("flags", []))
    if config.getoption("--smoke"):
        machine_info["smoke"] = True


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    return machine.commit_info()
