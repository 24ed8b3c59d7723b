"""The command that measures on a GPU: its stages, their commands and their files."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time

import pytest
import torch

from bench.gpu import measure
from bench.gpu.measure import Stage
from bench.report import markdown
from tests.support.benchmarks import H100


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(quick=False, patience=90.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_is_refused_in_one_line(capsys):
    from fastunit.common import cli

    assert cli.guard(lambda: measure.main([])) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: bench.gpu.measure needs an NVIDIA GPU") and error.count("\n") == 1
    )


def test_stages_keep_to_their_seconds_and_to_those_that_are_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stages = {"a": 50, "b": 100, "c": 20}
    stages = {name: Stage(("x.py",), "x", seconds) for name, seconds in stages.items()}
    monkeypatch.setattr(measure, "STAGES", stages)
    planned = []
    for name, _, seconds in measure.planned(["a", "b", "c"], limit=120):
        planned.append((name, seconds))
        now[0] += seconds - 5 if name == "a" else seconds
    assert planned == [("a", 50), ("b", 75)]
    assert "c: left out, the 120 s are spent" in capsys.readouterr().out
    alone = [(name, seconds) for name, _, seconds in measure.planned(["c"], limit=60)]
    assert alone == [("c", 60)]


def test_stages_name_benchmarks_that_exist_and_leave_time_for_what_is_compiled():
    folder = measure.ROOT / "bench"
    assert all(
        (folder / name).is_file() for stage in measure.STAGES.values() for name in stage.files
    )
    names = list(measure.STAGES)
    before = sum(measure.STAGES[name].seconds for name in names[: names.index("strongest")])
    assert before + measure.PATIENCE <= measure.LIMIT and measure.LIMIT + measure.GRACE <= 8 * 60


def test_command_of_a_stage(options, tmp_path):
    stage, path = Stage(("step/bench_step.py",), "a or b", 60), tmp_path / "x.json"
    words = measure.command(stage, path, 42.5, H100, options)
    assert words[:5] == [sys.executable, "-m", "pytest", "bench/step/bench_step.py", "-q"]
    assert words[words.index("-k") + 1] == "a or b"
    assert {"--ceilings=800,3000", "--budget=42.5", "--patience=0"} < set(words)
    words = measure.command(stage._replace(compiled=True), path, 42.5, H100, options)
    assert "--patience=90.0" in words
    options.quick = True
    words = measure.command(stage, path, 42.5, H100, options)
    assert words[words.index("-k") + 1] == "(a or b) and not compiled"


def test_a_command_that_overruns_is_ended(monkeypatch):
    monkeypatch.setattr(measure, "GRACE", 0.2)
    python = [sys.executable, "-c"]
    start = time.monotonic()
    assert measure.run([*python, "import time; time.sleep(60)"], 0.1, os.environ) != 0
    assert time.monotonic() - start < 30
    assert measure.run([*python, "raise SystemExit(7)"], 30, os.environ) == 7


def test_names_of_files(monkeypatch, tmp_path):
    date = datetime.date(2026, 1, 31)
    assert measure.file_stem("NVIDIA H100 80GB HBM3", date) == "nvidia-h100-80gb-hbm3-2026-01-31"
    monkeypatch.setenv("OUT", str(tmp_path))
    assert measure.folder_of(None) == tmp_path
    assert measure.folder_of(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("OUT")
    assert measure.folder_of(None) == measure.ROOT / "bench" / "results"


@pytest.mark.slow
def test_a_stage_leaves_results_that_the_report_reads(tmp_path, monkeypatch):
    options, path = argparse.Namespace(quick=True, patience=None), tmp_path / "x.json"
    stage = Stage(("ops/bench_norm_act.py",), "ours and forward and ln", 60)
    words = measure.command(stage, path, 60, H100, options)
    assert measure.run(words, 90, os.environ) == 0
    run = markdown.merged([path])
    assert "| norm_act | ln, 1, " in markdown.page(run)
    if torch.cuda.is_available():
        assert run["machine_info"]["gb_per_s"] == 3000
