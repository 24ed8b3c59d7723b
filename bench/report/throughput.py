"""Tables of throughput compared with the baseline, and with an earlier run.

Results are dictionaries as in pytest-benchmark's JSON; a run is the content of such a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import machine as machine_of
from bench.report import tables
from bench.report.tables import UNKNOWN, Result, number

# Functions of bench_*.py that compare fastunit with the baseline, and what they measure.
TITLES = {
    "bench_opponents": "training step",
    "bench_translate": "translation",
    "bench_pipeline": "data pipeline",
}
FAILED = "failed"
# Conditions under which rates are comparable: these must be equal.
SETUP = {
    "processor": lambda machine: machine_of.processor(machine),
    "cores": lambda machine: machine.get("cores"),
    "threads": lambda machine: machine.get("threads"),
    "GPU": lambda machine: machine.get("gpu"),
    "torch": lambda machine: machine.get("torch"),
    "smoke run": lambda machine: machine.get("smoke"),
}


def case(result: Result) -> str:
    """Return what a result measured: 128x128, batch 4."""
    params = dict(result["params"] or {})
    size = params.pop("size", None)
    cells = [f"{size}x{size}"] if isinstance(size, int) else [] if size is None else [str(size)]
    named = {"batch": "batch {}", "workers": "workers {}", "threads": "threads {}"}
    cells += [named.get(key, "{}").format(value) for key, value in params.items()]
    return ", ".join(cells)


def title(result: Result) -> str:
    function = tables.function(result)
    return TITLES.get(function, function.removeprefix("bench_").replace("_", " "))


def table(results: Sequence[Result]) -> list[str]:
    """Return a row for each comparison with the baseline, failed ones included, as Markdown."""
    header = ["benchmark", "case", "fastunit images/s", "baseline images/s", "times as fast"]
    header += ["p20 to p80", "fastunit MiB", "baseline MiB", "all processes MiB"]
    rows = []
    for result in results:
        if tables.function(result) not in TITLES:
            continue
        facts = result["extra_info"]
        both = [facts.get(name) for name in ("fastunit", "baseline")]
        row = [title(result), case(result), *(_rate(found) for found in both)]
        row.append(number(facts.get("baseline_ratio"), "{:.2f}"))
        row.append(" to ".join(f"{x:.2f}" for x in facts.get("baseline_spread", ())) or UNKNOWN)
        row += [number(tables.peak(found), "{:.0f}") for found in both]
        rows.append([*row, number(facts.get("peak_all_mib"), "{:.0f}")])
    return tables.markdown(header, rows)


def timed(result: Result) -> bool:
    """Return whether a result is a comparison with the baseline."""
    return tables.function(result) in TITLES and "baseline_ratio" in result["extra_info"]


def complete(results: Sequence[Result]) -> bool:
    """Return whether all kinds of comparisons are present, each with the baseline's time."""
    found = [result for result in results if tables.function(result) in TITLES]
    kinds = {tables.function(result) for result in found}
    return kinds == TITLES.keys() and all(map(timed, found))


def line(result: Result) -> str:
    """Return a benchmark's result as one line."""
    facts = result["extra_info"]
    if facts.get("baseline_ratio") is not None:
        rates = [number(facts[name]["images_per_s"]) for name in ("fastunit", "baseline")]
        ratio = facts["baseline_ratio"]
        return f"{rates[0]} images/s, baseline {rates[1]}: {ratio:.2f} times as fast"
    value, unit, _ = _figure(result)
    return UNKNOWN if value is None else f"{number(value)} {unit}"


def comparison(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Compare two runs, in Markdown: differences of their machines, and a table of rates."""
    lines = [f"Compared with the run of {_when(then)}.", *differences(now, then), ""]
    before = {result["name"]: result for result in then["benchmarks"]}
    after = {result["name"]: result for result in now["benchmarks"]}
    rows = [
        _compared(result, before[name])
        for name, result in after.items()
        if name in before and _figure(result)[0] and _figure(before[name])[0]
    ]
    header = ["benchmark", "case", "unit", "then", "now", "times as fast as then"]
    lines += tables.markdown([*header, "vs baseline, then", "vs baseline, now"], rows)
    if not rows:
        lines.append("No benchmark of this run is in it.")
    if new := [f"{title(after[name])} {case(after[name])}" for name in after if name not in before]:
        lines += ["", f"Not in the earlier run: {'; '.join(new)}."]
    if old := [
        f"{title(before[name])} {case(before[name])}" for name in before if name not in after
    ]:
        lines += ["", f"Only in the earlier run: {'; '.join(old)}."]
    return lines


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Return how the machines or setups of two runs differ; empty if they do not."""
    machines = then["machine_info"], now["machine_info"]
    found = [
        f"{name}: {_or_none(read(machines[0]))} then, {_or_none(read(machines[1]))} now"
        for name, read in SETUP.items()
        if read(machines[0]) != read(machines[1])
    ]
    if not found:
        return []
    warning = "NOT THE SAME SETUP, so rates do not compare, and ratios to the baseline hardly do: "
    return ["", warning + "; ".join(found) + "."]


def _compared(now: Result, then: Result) -> list[str]:
    (value, unit, more), (earlier, _, _) = _figure(now), _figure(then)
    gain = value / earlier if more else earlier / value
    ratios = [number(r["extra_info"].get("baseline_ratio"), "{:.2f}") for r in (then, now)]
    return [title(now), case(now), unit, number(earlier), number(value), f"{gain:.2f}", *ratios]


def _figure(result: Result) -> tuple[float | None, str, bool]:
    """Return a result's figure, its unit, and whether higher is better."""
    facts = result["extra_info"]
    if facts.get("images_per_s"):
        return facts["images_per_s"], "images/s", True
    if facts.get("median_us"):
        return facts["median_us"], "µs", False
    seconds = (result.get("stats") or {}).get("median")
    return (seconds and 1e3 * seconds), "ms", False


def _rate(found: Mapping[str, Any] | str | None) -> str:
    """Return images/s with the 20th and 80th percentiles, or why there are none."""
    if not isinstance(found, Mapping):
        return found or FAILED
    rate, middle = found["images_per_s"], found["median_ms"]
    low, high = (rate * middle / found[key] for key in ("p80_ms", "p20_ms"))
    return f"{number(rate)} ({number(low)} to {number(high)})"


def _when(run: Mapping[str, Any]) -> str:
    commit = machine_of.commit(run)
    return run.get("datetime", "")[:16].replace("T", " ") + (f", commit {commit}" if commit else "")


def _or_none(value: object) -> object:
    return "none" if value is None else value
