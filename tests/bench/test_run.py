"""``pytest bench/`` itself: what it selects, what it says it leaves out, what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.report import selection, throughput
from bench.report.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


class Item(SimpleNamespace):
    """What `selection` needs of a pytest item."""

    def get_closest_marker(self, name: str):
        return name in self.marks


def item(file: str, *marks: str) -> Item:
    return Item(path=BENCH / file, marks=marks)


ITEMS = [
    item("step/bench_data.py", "throughput"),
    item("step/bench_data.py"),
    item("ops/bench_norm_act.py"),
    item("step/bench_step.py", "throughput"),
    item("step/bench_step.py"),
    item("step/bench_step.py", "full"),
    Item(path=ROOT / "tests" / "test_x.py", marks=()),
]


def chosen(*words: str, full: bool = False) -> list[int]:
    """Return which of ITEMS pytest's words select, in the order in which they run."""
    config = SimpleNamespace(
        args=list(words),
        getoption=lambda name: full,
        invocation_params=SimpleNamespace(dir=ROOT),
    )
    kept, left = selection.split(config, ITEMS)
    assert len(kept) + len(left) == len(ITEMS)
    return [next(i for i, one in enumerate(ITEMS) if one is found) for found in kept]


def test_plain_selects_throughput_and_the_step_first():
    assert chosen("bench/") == chosen(str(BENCH)) == [3, 0, 6]


def test_a_files_name_adds_its_own_but_for_what_takes_long():
    assert chosen("bench/ops/bench_norm_act.py") == [3, 0, 2, 6]
    assert chosen("bench/step/bench_step.py") == [3, 4, 0, 6]
    assert chosen("bench/step/bench_step.py::bench_x[256-1]") == [3, 4, 5, 0, 6]


def test_full_selects_all():
    assert sorted(chosen("bench/", full=True)) == list(range(len(ITEMS)))


def test_what_is_left_out_is_counted_by_file_with_the_way_to_run_it():
    text = selection.left_out([ITEMS[1], ITEMS[4], ITEMS[5]])
    assert text.startswith("Left out: 3 benchmarks (bench_data.py 1, bench_step.py 2).")
    assert "pytest bench/ --full" in text and "bench/ops/bench_norm_act.py" in text


# ---- pytest itself


def bench(*words: object, cwd: Path = ROOT, code: int = 0) -> list[str]:
    """Run pytest with these words; returns the lines of its output."""
    command = [sys.executable, "-m", "pytest", *map(str, words)]
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert found.returncode == code, found.stdout + found.stderr
    return (found.stdout + found.stderr).splitlines()


@pytest.mark.slow
def test_plain_collection_from_anywhere(tmp_path):
    lines = bench(BENCH, "--collect-only", "-q", cwd=tmp_path)
    names = [line.rpartition("::")[2] for line in lines if "::bench_" in line]
    assert {name.partition("[")[0] for name in names} == throughput.TITLES.keys()
    assert len(names) <= 8 and names[0].startswith("bench_opponents")
    (left,) = [line for line in lines if line.startswith("Left out: ")]
    files = {path.name for path in BENCH.glob("bench_*.py")} - {"bench_data.py"}
    assert all(name in left for name in files)


@pytest.mark.slow
def test_options_that_make_no_sense_are_refused_in_a_line(tmp_path):
    lines = bench("bench/", "--compare", tmp_path / "absent.json", code=4)
    assert lines[-1].startswith("ERROR: --compare: cannot read the results") or any(
        line.startswith("ERROR: --compare: cannot read the results") for line in lines
    )
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_a_small_run_shows_progress_and_a_table_and_compares(tmp_path):
    stem, stored, earlier = (tmp_path / name for name in ("x", "stored.json", "earlier.json"))
    old = {"name": "bench_opponents[128-1]", "params": {"size": 128, "batch": 1}}
    old |= {"extra_info": {"images_per_s": 1e-6}, "stats": {}}
    earlier.write_text(json.dumps({"benchmarks": [old], "machine_info": {"threads": 77}}))
    words = ["bench/", "-k", "128-1 and opponents", "--smoke", "-q", f"--results={stem}"]
    lines = bench(*words, f"--benchmark-json={stored}", f"--compare={earlier}")
    text = "\n".join(lines)
    assert re.search(r"\[1/1\] \d+:\d\d  training step, 128x128, batch 1\n", text)
    assert "SMOKE RUN" in text and f"wrote {stem}.json, {stem}.md" in text
    table = next(i for i, line in enumerate(lines) if line.startswith("benchmark  "))
    assert re.match(r"training step +128x128, batch 1 +\d", lines[table + 2])
    assert any(line.startswith("CPU: ") for line in lines[table:])
    (peak,) = re.findall(r"peak memory of all processes together: (\d+) MiB", text)
    assert 300 < int(peak) < 4000
    run, own = (json.loads(path.read_text()) for path in (stem.with_suffix(".json"), stored))
    assert [r["name"] for r in run["benchmarks"]] == [r["name"] for r in own["benchmarks"]]
    facts = run["benchmarks"][0]["extra_info"]
    assert facts["peak_all_mib"] <= int(peak) and facts == own["benchmarks"][0]["extra_info"]
    assert "Compared with the run of " in text and "threads: 77 then, 1 now" in text
    assert "times as fast as then" in text
    assert "## Earlier run" in stem.with_suffix(".md").read_text()


# ---- what it tells of failures


@pytest.fixture
def progress() -> Progress:
    lines: list[str] = []
    reporter = SimpleNamespace(
        write_line=lambda line, **_: lines.append(line), section=lines.append, lines=lines
    )
    config = SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: reporter))
    return Progress(config, None)


def test_failed_and_skipped_benchmarks_have_their_line(progress):
    for when, outcome in (("setup", "passed"), ("call", "failed"), ("setup", "skipped")):
        report = SimpleNamespace(nodeid="x", when=when, outcome=outcome)
        report.passed = outcome == "passed"
        progress.pytest_runtest_logreport(report)
    assert progress._reporter.lines == ["    failed", "    setup: skipped"]


def test_a_module_that_is_skipped_is_named(progress):
    reason = ("bench_data.py", 1, "Skipped: needs NVIDIA DALI")
    report = SimpleNamespace(skipped=True, nodeid="bench/step/bench_data.py", longrepr=reason)
    progress.pytest_collectreport(report)
    assert progress.skipped == ["bench/step/bench_data.py: Skipped: needs NVIDIA DALI"]


def test_a_benchmark_without_figures_is_kept_as_failed(progress):
    facts = {"name": "n", "fullname": "f::n", "params": {}, "extra_info": {}}
    progress._keep(SimpleNamespace(stats=None, **facts), 100)
    assert progress.failed == [facts] and not progress.results
