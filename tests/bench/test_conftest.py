"""``pytest bench/`` in a process of its own: what it collects, refuses, shows and leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.report import throughput
from tests.support.checkout import ROOT
from tests.support.processes import python

BENCH = ROOT / "bench"


def bench(*words: object, cwd: Path = ROOT, code: int = 0) -> list[str]:
    """Run pytest with these words; returns the lines of its output."""
    found = python("-m", "pytest", *words, cwd=cwd)
    assert found.returncode == code, found.stdout + found.stderr
    return (found.stdout + found.stderr).splitlines()


@pytest.mark.slow
def test_plain_collection_from_anywhere(tmp_path):
    lines = bench(BENCH, "--collect-only", "-q", cwd=tmp_path)
    names = [line.rpartition("::")[2] for line in lines if "::bench_" in line]
    assert {name.partition("[")[0] for name in names} == throughput.TITLES.keys()
    assert len(names) <= 8 and names[0].startswith("bench_opponents")
    (left,) = [line for line in lines if line.startswith("Left out: ")]
    files = {path.name for path in BENCH.rglob("bench_*.py")} - {"bench_data.py"}
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


@pytest.mark.slow
def test_a_spent_budget_skips_and_wrong_ceilings_are_refused(tmp_path):
    words = ["-m", "pytest", "bench/ops/bench_norm_act.py", "-q", "-k", "ours and ln"]
    runs = [python(*words, option, cwd=ROOT) for option in ("--budget=0", "--ceilings=800")]
    assert runs[0].returncode == 0 and "the budget of 0 s is spent" in runs[0].stdout
    assert "passed" not in runs[0].stdout
    assert runs[1].returncode != 0 and "must be two numbers" in runs[1].stderr
