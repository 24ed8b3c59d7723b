"""What a run of the benchmarks tells of failures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench.report.progress import Progress


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
