"""The tables of a report, from pytest-benchmark's results (dictionaries of its JSON).

A table is a list of Markdown lines, empty if there are no results for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

IMPLEMENTATIONS = {"eager": "eager", "channels_last": "cuDNN, NHWC", "compiled": "compiled"}
UNKNOWN = "-"
_NUMBER = re.compile(r"-|[\d.]+(x\d+)?( %| \(.*\)| to [\d.]+)?|out of \w+|failed")


def function(result: Result) -> str:
    """Return the name of the benchmark's function."""
    return result["name"].partition("[")[0]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table; numeric columns are right-aligned, columns without values left out."""
    rows = list(rows)
    if not rows:
        return []
    kept = [i for i in range(len(header)) if any(row[i] != UNKNOWN for row in rows)]
    numbers = [all(_NUMBER.fullmatch(row[i]) for row in rows) for i in kept]
    marks = ["--:" if of_numbers else "---" for of_numbers in numbers]
    lines = [[header[i] for i in kept], marks, *([row[i] for i in kept] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def aligned(lines: Sequence[str]) -> list[str]:
    """Return Markdown with its table's columns padded, for a terminal."""
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = cells[1] if cells else []
    return [_padded(line, widths, marks) if line.startswith("|") else line for line in lines]


def _padded(line: str, widths: Sequence[int], marks: Sequence[str]) -> str:
    cells = line.strip("| ").split(" | ")
    if cells == marks:
        return "  ".join("-" * width for width in widths)
    padded = (
        cell.rjust(width) if mark == "--:" else cell.ljust(width)
        for cell, width, mark in zip(cells, widths, marks, strict=True)
    )
    return "  ".join(padded).rstrip()


def times(results: Sequence[Result], named: str = "bench_opponents") -> list[str]:
    """Return the times of a benchmark that uses `compare`: a row for each size and batch."""
    found, names = _compared(results, named)
    ours, *others = names or [""]
    header = ["size", "batch", f"{ours} ms", f"{ours} images/s", *(f"{n} ms" for n in others)]
    header += [*(f"{name} / {ours}" for name in others), "floor ms", "floor, % of ours"]
    rows = []
    for facts, row in found:
        row = [*row, _spread(facts[ours]), number(facts[ours]["images_per_s"])]
        row += [_spread(facts.get(name)) for name in others]
        row += [number(facts.get(f"{name}_ratio"), "{:.2f}") for name in others]
        row += [number(facts.get("floor_ms")), number(facts.get("floor_percent"), "{:.0f}")]
        rows.append(row)
    return markdown(header, rows)


def memory(results: Sequence[Result], named: str = "bench_opponents") -> list[str]:
    """Return the peak memory of the same."""
    found, names = _compared(results, named)
    ours, *others = names or [""]
    header = ["size", "batch", *(f"{name} MiB" for name in names)]
    header += [f"{ours} / {name}" for name in others]
    rows = []
    for facts, row in found:
        mine, *theirs = (peak(facts.get(name)) for name in names)
        row = row + [number(mib, "{:.0f}") for mib in (mine, *theirs)]
        rows.append(row + [_ratio(mine, mib) for mib in theirs])
    return markdown(header, rows)


def _compared(
    results: Sequence[Result], named: str
) -> tuple[list[tuple[Mapping[str, Any], list[str]]], list[str]]:
    """Return each row's facts and first cells, and the contenders' names, ours first."""
    found, names = [], {}
    for result in results:
        if function(result) == named:
            facts, params = result["extra_info"], result["params"]
            found.append((facts, [f"{params['size']}x{params['size']}", str(params["batch"])]))
            names |= dict.fromkeys(facts["opponents"])
    return found, list(names)


def ablation(results: Sequence[Result]) -> list[str]:
    """Return a row for each ablation and size: the step's time and its ratio to all on."""
    rows = []
    for result in results:
        if function(result) != "bench_ablation":
            continue
        facts, size = result["extra_info"], result["params"]["size"]
        for name in facts["opponents"]:
            rows.append(
                [
                    f"{size}x{size}, batch {result['params']['batch']}",
                    name,
                    _spread(facts.get(name)),
                    number(facts.get(f"{name}_ratio"), "{:.2f}"),
                    number(peak(facts.get(name)), "{:.0f}"),
                ]
            )
    return markdown(["case", "step", "ms", "/ all on", "MiB"], rows)


def operations(results: Sequence[Result], copy_gb_per_s: float | None = None) -> list[str]:
    """Return a row for each operation, case and mode: microseconds of all, rates of ours."""
    cases: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        if "median_us" not in result["extra_info"]:
            continue
        params = dict(result["params"])
        implementation = params.pop("implementation", "ours")
        mode = params.pop("mode", None) or params.pop("direction", "")
        case = ", ".join(_short(value) for value in params.values())
        key = function(result).removeprefix("bench_"), case, mode
        cases.setdefault(key, {})[implementation] = result["extra_info"]
    header = [
        "operation",
        "case",
        "pass",
        "ours µs",
        *(f"{n} µs" for n in IMPLEMENTATIONS.values()),
    ]
    header += ["best other / ours", "TFLOP/s", "% of matmul", "GB/s", "% of copy"]
    rows = []
    for key, found in cases.items():
        ours = found.get("ours", {})
        times = [found.get(name, {}).get("median_us") for name in ("ours", *IMPLEMENTATIONS)]
        best = min((time for time in times[1:] if time is not None), default=None)
        rates = [ours.get(name) for name in ("tflop_per_s", "percent_of_matmul", "gb_per_s")]
        copied = 100 * rates[2] / copy_gb_per_s if rates[2] and copy_gb_per_s else None
        cells = [number(time) for time in times] + [_ratio(best, times[0])]
        rows.append([*key, *cells, *(number(rate) for rate in (*rates, copied))])
    return markdown(header, rows)


def data(results: Sequence[Result]) -> list[str]:
    """Return a row for each trained configuration, with the share of time waiting for images."""
    rows = []
    for result in results:
        if function(result) == "bench_data_wait":
            facts = result["extra_info"]
            share = f"{100 * facts['data_wait']:.2g} %"
            rows.append([str(result["params"]["case"]), number(facts["images_per_s"]), share])
    return markdown(["case", "images/s", "data wait"], rows)


def steps(results: Sequence[Result]) -> list[str]:
    """Return a row for each of our own configurations."""
    rows = [
        [
            str(result["params"]["name"]),
            _interval(*(1e3 * result["stats"][key] for key in ("median", "q1", "q3"))),
            number(result["extra_info"]["images_per_s"]),
        ]
        for result in results
        if function(result) == "bench_step"
    ]
    return markdown(["configuration", "ms", "images/s"], rows)


def number(value: float | None, form: str = "") -> str:
    """Return a number, with three digits unless a form is given; a dash for None."""
    if value is None:
        return UNKNOWN
    if form:
        return form.format(value)
    digits = f"{value:#.3g}".rstrip(".")
    return f"{value:.0f}" if value >= 999.5 else digits


def _spread(facts: Mapping[str, Any] | str | None) -> str:
    """Return the median with 20th and 80th percentiles, or the reason why there is none."""
    if facts is None or isinstance(facts, str):
        return facts or UNKNOWN
    return _interval(*(facts[key] for key in ("median_ms", "p20_ms", "p80_ms")))


def _interval(median: float, low: float, high: float) -> str:
    return f"{number(median)} ({number(low)} to {number(high)})"


def peak(facts: Mapping[str, Any] | str | None) -> float | None:
    """Return a contender's peak MiB; None if it has no times."""
    return facts["peak_mib"] if isinstance(facts, Mapping) else None


def _ratio(value: float | None, ours: float | None) -> str:
    return number(value / ours, "{:.2f}") if value is not None and ours else UNKNOWN


def _short(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
