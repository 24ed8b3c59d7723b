"""The stages of prove.py: each runs commands within its time limit and returns the outcome."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bench.gpu import measure
from bench.gpu.workspace import Outcome, Workspace
from fastunit.common import cli
from fastunit.training import checkpoint

# Every tensor is an allocation of the driver's, so that out-of-bounds accesses are detected.
CHECKED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SANITIZER = "compute-sanitizer"
DALI = "nvidia.dali"
CUDA = Path("/usr/local/cuda/bin")
WORKERS = 8  # of pytest: most of the tests' time is spent in Triton's compiler
CONFIGS = {"emoji_google2twitter": "emoji"}  # by the folder's name; photos for others
MEASURING = 60  # seconds for the evaluation on held-out pairs and the page


def tests(workspace: Workspace) -> Outcome:
    """Run the tests marked `gpu`, in parallel if pytest-xdist is installed."""
    junit = workspace.out / "tests.xml"
    junit.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={junit}"]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(WORKERS)]
    code = workspace.run([*words, "-p", "no:cacheprovider"])
    if not junit.is_file():
        return Outcome.of({"pytest": code or 1}, "it has left no results")
    counts, passed = counted(junit)
    return Outcome.of({"pytest": code or int(passed == 0)}, counts)


def counted(junit: Path) -> tuple[str, int]:
    """Return "7 passed, 1 failed, ..." for a file that pytest wrote, and how many passed."""
    suites = ElementTree.parse(junit).getroot().iter("testsuite")
    names = ("tests", "failures", "errors", "skipped")
    totals = dict.fromkeys(names, 0)
    for suite in suites:
        for name in names:
            totals[name] += int(suite.get(name, 0))
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    words = f"{passed} passed, {totals['failures']} failed, {totals['errors']} errors"
    return f"{words}, {totals['skipped']} skipped", passed


def sanitize(workspace: Workspace) -> Outcome:
    """Run every kernel, first without a tool, then under memcheck and racecheck."""
    program = [sys.executable, "-m", "bench.gpu.every_kernel"]
    codes = {"every_kernel": workspace.run(program)}  # also compiles them
    tool = shutil.which(SANITIZER) or shutil.which(SANITIZER, path=CUDA)
    if codes["every_kernel"]:
        return Outcome.of(codes)
    if tool is None:
        return Outcome.left_out(f"{SANITIZER} is neither on the PATH nor in {CUDA}")
    options = ["--error-exitcode=1", "--target-processes=application-only", "--print-limit=20"]
    for check in ("memcheck", "racecheck"):
        extra = ["--report-api-errors=no"] if check == "memcheck" else []
        codes[check] = workspace.run([tool, f"--tool={check}", *options, *extra, *program], CHECKED)
    return Outcome.of(codes)


def report(workspace: Workspace, *options: str) -> Outcome:
    """Write the benchmark report of measure.py, with its options."""
    # The limit is for its stages: it measures the ceilings before.
    limit = max(workspace.left - measure.GRACE, measure.LEAST)
    words = [
        sys.executable,
        "-m",
        "bench.gpu.measure",
        "--out",
        workspace.out,
        f"--limit={limit:.0f}",
    ]
    words += options
    if _installed(DALI):
        return Outcome.of({"measure": workspace.run(words)})
    words += ["--only", *(name for name in measure.STAGES if name != "data")]
    return Outcome.of(
        {"measure": workspace.run(words)}, "without data: NVIDIA DALI is not installed"
    )


def tiles(workspace: Workspace) -> Outcome:
    """Write tiles.md: the GEMMs' tiles, and which others are faster on this GPU."""
    words = [sys.executable, "-m", "bench.gpu.tiles_report", "--time"]
    return Outcome.of({"tiles_report": workspace.run([*words, "-o", workspace.out / "tiles.md"])})


def profile(workspace: Workspace) -> Outcome:
    """Write profile.md: a training step of 256x256, one image of each domain."""
    words = [sys.executable, "-m", "bench.step.profile", "--out", workspace.out / "profile.md"]
    return Outcome.of({"profile": workspace.run(words)})


def train(workspace: Workspace) -> Outcome:
    """Train on each data folder for an equal share of the time; keep last samples and result."""
    if not workspace.data:
        return Outcome.left_out("no folder to train on; give --data")
    if not _installed(DALI):
        return Outcome.left_out("NVIDIA DALI, which reads the images, is not installed here")
    codes = {}
    for data in workspace.data:
        runs = measure.ROOT / "runs" / f"prove-{data.name}-{os.getpid()}"
        codes[data.name] = _train(
            workspace, data.resolve(), runs, workspace.seconds / len(workspace.data)
        )
        for path in _kept(runs):
            shutil.copyfile(path, workspace.out / f"{data.name}{path.suffix}")
    return Outcome.of(codes)


def _train(workspace: Workspace, data: Path, folder: Path, seconds: float) -> int:
    """Train for some seconds, then resume with the iteration reached as max_iter, to evaluate."""
    command = [sys.executable, "-m", "fastunit.train"]
    config = CONFIGS.get(data.name, "photos")
    fresh = ["--config", config, "--data", data, "--output", folder, "--max-iter", 10**7]
    alarm = ["timeout", "--signal=INT", "--preserve-status"]
    code = workspace.run([*alarm, max(seconds - MEASURING, 1), *command, *fresh])
    if code != cli.INTERRUPTED:
        return code or 1  # it cannot have reached max_iter
    done = checkpoint.iterations(folder)[-1]
    return workspace.run([*command, "--resume", folder, "--max-iter", done], seconds=MEASURING)


def _kept(folder: Path) -> list[Path]:
    """Return the last grid of samples and result.json, where there are any."""
    return [*sorted(folder.glob("samples/*.png"))[-1:], *folder.glob("result.json")]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
