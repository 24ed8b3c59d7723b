"""Results of the benchmarks as a page: ``python bench/report.py results.json -o table.md``.

The results are what ``python -m pytest bench/ --benchmark-json results.json`` writes; several
files make one report, in which the last one of two results of the same benchmark counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a file, bench.* is not found

from bench import tables
from fastunit import cli
from fastunit.errors import DataError

NOTES = {
    "Training step": "The release's networks. Milliseconds are medians, in parentheses the 20th "
    "and 80th percentiles; implementations take turns, and ratios are medians of the rounds.",
    "Memory of the training step": "The peak, without what was there before the networks; on a "
    "GPU what PyTorch has reserved.",
    "What each saving is worth": "The same step with all savings of bench/savings.py, "
    "with none, without one and, on a CPU, with one alone.",
    "Precision": "The same step in other precisions; read as the training step.",
    "Our configurations": "Median, in parentheses the quartiles.",
    "Translation": "The release's networks, one direction; read as the training step.",
    "Operations": "Medians. Rates are those of ours, percentages of this machine's ceilings.",
    "Data": "Data wait is the share of a training loop's time.",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    run = merged(args.results)
    text = page(run)
    if args.output is None:
        print(text, end="")
    else:
        args.output.write_text(text, encoding="utf-8")
    if args.picture is not None:
        with cli.needs("train"):
            from bench import picture
        picture.draw(run["benchmarks"], args.picture)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python bench/report.py", description=__doc__)
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="JSON", help="what --benchmark-json wrote")
    add("-o", "--output", type=Path, metavar="FILE", help="Markdown; default: standard output")
    add("--picture", type=Path, metavar="FILE", help="a PNG of the training steps")
    return parser


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the runs of several files as one; machine and commit are those of the last.

    Raises DataError for what pytest-benchmark has not written, and for runs of different machines
    or commits.
    """
    runs = [_read(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if _origin(run) != _origin(runs[0]):
            raise DataError(
                f"{path} is of another machine or commit than {paths[0]}; make a report of each"
            )
    found = {result["fullname"]: result for run in runs for result in run["benchmarks"]}
    return runs[-1] | {"benchmarks": list(found.values())}


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error
    if not isinstance(run, dict) or not {"benchmarks", "machine_info"} <= run.keys():
        raise DataError(f"{path} holds no results; write them with pytest's --benchmark-json")
    return run


def _origin(run: Mapping[str, Any]) -> tuple[Any, ...]:
    machine = run["machine_info"]
    return machine.get("node"), machine.get("gpu"), machine.get("torch"), _commit(run)


def page(run: Mapping[str, Any]) -> str:
    """Return the report in Markdown; sections without results are left out."""
    results, machine = run["benchmarks"], run["machine_info"]
    sections = {
        "Training step": tables.times(results),
        "Memory of the training step": tables.memory(results),
        "What each saving is worth": tables.ablation(results),
        "Precision": tables.times(results, "bench_precision"),
        "Our configurations": tables.steps(results),
        "Translation": tables.times(results, "bench_translate"),
        "Operations": tables.operations(results, machine.get("gb_per_s")),
        "Data": tables.data(results),
    }
    lines = [f"# Benchmarks: {machine.get('gpu') or _processor(machine)}", ""]
    lines += tables.markdown(["", ""], heading(run))
    for title, table in sections.items():
        if table:
            lines += ["", f"## {title}", "", NOTES[title], "", *table]
    return "\n".join(lines) + "\n"


def heading(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what makes the numbers comparable: machine, versions, commit, date, ceilings."""
    machine = run["machine_info"]
    found = {
        "GPU": machine.get("gpu"),
        "driver": machine.get("driver"),
        "clocks when read": ", ".join(
            f"{name} {machine[key]}"
            for name, key in (("SM", "sm_clock"), ("memory", "memory_clock"))
            if key in machine
        ),
        "bf16 product": _with_unit(machine.get("tflop_per_s"), "TFLOP/s"),
        "copy": _with_unit(machine.get("gb_per_s"), "GB/s, read and written"),
        "CPU": f"{_processor(machine)}, threads: {machine.get('threads', '?')}",
        "versions": ", ".join(
            f"{name.removesuffix('_version')} {machine[name]}"
            for name in ("fastunit", "torch", "triton", "cudnn", "python_version")
            if name in machine
        ),
        "commit": _commit(run),
        "date": run.get("datetime", "")[:19].replace("T", " "),
    }
    return [(name, value) for name, value in found.items() if value]


def _processor(machine: Mapping[str, Any]) -> str:
    return machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown machine")


def _commit(run: Mapping[str, Any]) -> str:
    commit = run.get("commit_info", {})
    if commit.get("id") in (None, "unknown", "unversioned"):
        return ""
    return commit["id"][:10] + (" with changes" if commit.get("dirty") else "")


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
