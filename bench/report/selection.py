"""Selection of benchmarks: throughput only, those of named files, or all with --full.

``pytest bench/`` runs those marked `throughput`. Naming a file adds its other benchmarks except
those marked `full`; a name with ``::`` selects whatever it names.
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
    """Return the items to run and the benchmarks left out; tests outside bench/ all run."""
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
    """Return whether the command line names a file or a benchmark, not only folders."""
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
    """Return a paragraph: which benchmarks were left out, and how to run them."""
    counts = Counter(item.path.name for item in items)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"Left out: {len(items)} benchmarks ({listed}).\n"
        "  One file of them: pytest bench/ops/bench_norm_act.py; all, which takes hours on a CPU: "
        "pytest bench/ --full."
    )
