"""A report of benchmark results in Markdown: ``python -m bench.report.markdown JSON -o table.md``.

The results are files written by ``python -m pytest bench/ --benchmark-json results.json``; several
files make one report, in which the last result of each benchmark is used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import machine, tables, throughput
from fastunit.common import cli
from fastunit.common.errors import DataError

NOTES = {
    "Throughput": "Images per second, with the 20th and 80th percentiles: of both domains in a "
    "training step, of one domain in translation (a to b) and data loading. The baselines are the "
    "release's networks in plain eager PyTorch, and its data loading with Pillow in as many "
    "processes as fastunit has threads. Both take turns; times as fast is the median over rounds.",
    "Training step": "The release's networks. Milliseconds are medians, in parentheses the 20th "
    "and 80th percentiles; implementations take turns, and ratios are medians over rounds.",
    "Memory of the training step": "The peak, without the memory in use before the networks were "
    "built; on a GPU the memory reserved by PyTorch.",
    "Ablations of the training step": "The step with all optimizations of bench/step/ablations.py, "
    "with none, without one and, on a CPU, with one alone.",
    "Precision": "The same step in other precisions; columns as for the training step.",
    "Our configurations": "Median, in parentheses the quartiles.",
    "Translation": "The release's networks, one direction; columns as for the training step.",
    "Operations": "Medians. Rates are those of ours, percentages of this machine's ceilings.",
    "Data": "Data wait is the share of a training loop's time spent waiting for images.",
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
        with cli.needs("bench"):
            from bench.report import picture
        picture.draw(run["benchmarks"], args.picture, _origin_words(run))
    return 0


def write(
    run: Mapping[str, Any], stem: Path, earlier: Mapping[str, Any] | None = None
) -> tuple[list[Path], str]:
    """Write a run's results as STEM.json, STEM.md and STEM.png.

    Returns:
        The paths, and the reason if there is no picture (else an empty string).

    Raises:
        OSError: a file cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    numbers, text, image = (stem.with_name(f"{stem.name}.{end}") for end in ("json", "md", "png"))
    numbers.write_text(json.dumps(run, indent=1), encoding="utf-8")
    text.write_text(page(run, earlier), encoding="utf-8")
    image.unlink(missing_ok=True)  # from an earlier run
    try:
        from bench.report import picture
    except ModuleNotFoundError as error:
        return [numbers, text], f"{error.name} is not installed"
    if not picture.shows(run["benchmarks"]):
        return [numbers, text], "nothing in the results has one"
    picture.draw(run["benchmarks"], image, _origin_words(run))
    return [numbers, text, image], ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.report.markdown", description=__doc__)
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="JSON", help="what --benchmark-json wrote")
    add("-o", "--output", type=Path, metavar="FILE", help="Markdown; default: standard output")
    add("--picture", type=Path, metavar="FILE", help="a PNG of the training steps")
    return parser


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the runs of several files as one; machine and commit are those of the last.

    Raises:
        DataError: a file was not written by pytest-benchmark, or the runs are of different
            machines or commits.
    """
    runs = [read(path) for path in paths]
    for path, run in zip(paths, runs, strict=True):
        if _origin(run) != _origin(runs[0]):
            raise DataError(
                f"{path} is of another machine or commit than {paths[0]}; make a report of each"
            )
    found = {result["fullname"]: result for run in runs for result in run["benchmarks"]}
    return runs[-1] | {"benchmarks": list(found.values())}


def read(path: Path) -> dict[str, Any]:
    """Return the run in a file; raises DataError if pytest-benchmark has not written it."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the results {path}: {error}") from error
    if not isinstance(run, dict) or not {"benchmarks", "machine_info"} <= run.keys():
        raise DataError(f"{path} holds no results; write them with pytest's --benchmark-json")
    return run


def _origin(run: Mapping[str, Any]) -> tuple[Any, ...]:
    facts = run["machine_info"]
    return facts.get("node"), facts.get("gpu"), facts.get("torch"), machine.commit(run)


def _origin_words(run: Mapping[str, Any]) -> str:
    """Return a line with the origin of a picture's numbers: machine, date and commit."""
    told = dict(heading(run))
    words = [told.get("GPU", told["CPU"]), told.get("date", ""), told.get("commit", "")]
    words += ["SMOKE RUN"] if run["machine_info"].get("smoke") else []
    return "; ".join(filter(None, words))


def page(run: Mapping[str, Any], earlier: Mapping[str, Any] | None = None) -> str:
    """Return the report in Markdown; sections without results are left out."""
    results, facts = run["benchmarks"], run["machine_info"]
    sections = {
        "Throughput": throughput.table([*results, *run.get("failed", [])]),
        "Training step": tables.times(results),
        "Memory of the training step": tables.memory(results),
        "Ablations of the training step": tables.ablation(results),
        "Precision": tables.times(results, "bench_precision"),
        "Our configurations": tables.steps(results),
        "Translation": tables.times(results, "bench_translate"),
        "Operations": tables.operations(results, facts.get("gb_per_s")),
        "Data": tables.data(results),
    }
    lines = [f"# Benchmarks: {facts.get('gpu') or machine.processor(facts)}", ""]
    if facts.get("smoke"):
        lines += ["A smoke run of tiny networks: the figures mean nothing.", ""]
    lines += tables.markdown(["", ""], heading(run))
    for title, table in sections.items():
        if table:
            lines += ["", f"## {title}", "", NOTES[title], "", *table]
    if earlier is not None:
        lines += ["", "## Earlier run", "", *throughput.comparison(run, earlier)]
    return "\n".join(lines) + "\n"


def heading(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the conditions of the results: machine, versions, commit, date, ceilings."""
    facts = run["machine_info"]
    found = {
        "GPU": facts.get("gpu"),
        "driver": facts.get("driver"),
        "clocks when read": ", ".join(
            f"{name} {facts[key]}"
            for name, key in (("SM", "sm_clock"), ("memory", "memory_clock"))
            if key in facts
        ),
        "bf16 matmul": _with_unit(facts.get("tflop_per_s"), "TFLOP/s"),
        "copy": _with_unit(facts.get("gb_per_s"), "GB/s, read and written"),
        "CPU": f"{machine.processor(facts)}, cores: {facts.get('cores', '?')}, "
        f"threads: {facts.get('threads', '?')}",
        "load": machine.load(facts),
        "versions": ", ".join(
            f"{name.removesuffix('_version')} {facts[name]}"
            for name in ("fastunit", "torch", "triton", "cudnn", "python_version")
            if name in facts
        ),
        "commit": machine.commit(run),
        "date": run.get("datetime", "")[:19].replace("T", " "),
    }
    return [(name, value) for name, value in found.items() if value]


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f} {unit}"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
