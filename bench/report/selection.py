"""Which benchmarks run: throughput alone, those of the files that are named, or all with --full.

A plain ``pytest bench/`` runs what is marked `throughput`. A file's name adds its other benchmarks
but for those marked `full`, and a name with ``::`` whatever it names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

MARKERS = (
    "throughput: part of a plain `pytest bench/`",
    "full: takes long; only with --full or by its own name",
)
ORDER = ("bench_step.py", "bench_translate.py", "bench_data.py")  # first; the others as found
FOLDER = Path(__file__).resolve().parents[1]


def split(
    config: pytest.Config, items: Sequence[pytest.Item]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return what to run and the benchmarks that are left out; tests elsewhere all run."""
    full = config.getoption("--full")
    files, nodes = _named(config)
    kept, left = [], []
    for item in items:
        ours = item.path.is_relative_to(FOLDER)
        named = item.path in nodes or (item.path in files and not item.get_closest_marker("full"))
        chosen = full or named or item.get_closest_marker("throughput")
        (kept if chosen or not ours else left).append(item)
    kept.sort(key=lambda item: (*ORDER, item.path.name).index(item.path.name))
    return kept, left


def names_files(config: pytest.Config) -> bool:
    """Return whether the command line names a file or a benchmark, not folders alone."""
    return any(_named(config))


def _named(config: pytest.Config) -> tuple[set[Path], set[Path]]:
    """Return the files named on the command line: whole ones, and those of named benchmarks."""
    files, nodes = set(), set()
    for word in config.args:
        name, colons, _ = word.partition("::")
        path = (config.invocation_params.dir / name).resolve()
        if path.is_file():
            (nodes if colons else files).add(path)
    return files, nodes


def left_out(items: Sequence[pytest.Item]) -> str:
    """Say in a paragraph what a run leaves out, and how to run it."""
    counts = Counter(item.path.name for item in items)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"Left out: {len(items)} benchmarks ({listed}).\n"
        "  One file of them: pytest bench/ops/bench_norm_act.py; all, which takes hours on a CPU: "
        "pytest bench/ --full."
    )
