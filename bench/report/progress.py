"""Console output of the benchmarks: a line when each case starts and ends, and a table at the end.

A pytest plugin. It collects results, also of an interrupted run, samples memory, and writes JSON,
Markdown and picture with markdown.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import pytest

from bench.report import markdown, selection, tables, throughput
from bench.report.process_tree import PeakMemory

FOLDER = selection.FOLDER / "results"


class Progress:
    """The plugin; `left` holds the benchmarks that were left out."""

    def __init__(self, config: pytest.Config, earlier: Mapping[str, Any] | None) -> None:
        self.config, self.earlier = config, earlier
        self.left: list[pytest.Item] = []
        self.skipped: list[str] = []
        self.results: dict[str, dict[str, Any]] = {}  # by node id
        self.failed: list[dict[str, Any]] = []
        self.peak_mib = 0.0
        self._started, self._count = time.monotonic(), 0
        self._names: dict[str, str] = {}  # by node id
        self._ended: set[str] = set()
        self._narrowed = False  # whether -k or -m deselected throughput benchmarks

    @property
    def _reporter(self) -> Any:
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._narrowed |= any(item.get_closest_marker("throughput") for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr[2]}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            result = {"name": item.name, "params": params}
            words = throughput.title(result), throughput.case(result)
            self._names[item.nodeid] = ", ".join(filter(None, words))
        self._reporter.showfspath = False  # the plugin's lines name the benchmarks

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._count += 1
        which = f"[{self._count}/{len(self._names)}] {self._elapsed()}"
        self._reporter.write_line(f"{which}  {self._names[nodeid]}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Collect a benchmark's results, also if it fails halfway, and its peak memory."""
        memory = PeakMemory()
        try:
            with memory:
                return (yield)
        finally:
            self.peak_mib = max(self.peak_mib, memory.mib)
            if "benchmark" in getattr(item, "funcargs", {}):
                self._keep(item.funcargs["benchmark"], memory.mib)

    def _keep(self, benchmark: Any, peak_mib: float) -> None:
        """Store a result in the form of pytest-benchmark's JSON; without figures it has failed."""
        if benchmark.stats and benchmark.extra_info:
            benchmark.extra_info["peak_all_mib"] = round(peak_mib)
            self.results[benchmark.fullname] = benchmark.stats.as_dict(include_data=False)
        else:
            names = ("name", "fullname", "params", "extra_info")
            self.failed.append({name: getattr(benchmark, name) for name in names})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._ended.add(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        result = self.results.get(report.nodeid)
        if report.when == "call":
            told = throughput.line(result) if result and report.passed else report.outcome
            self._reporter.write_line(f"    {told}")
        elif report.outcome != "passed":
            self._reporter.write_line(f"    {report.when}: {report.outcome}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Replace pytest's dots by the plugin's lines."""
        if report.when == "call" or (report.when == "setup" and report.skipped):
            return report.outcome, "", report.outcome.upper()
        return ("error", "", "ERROR") if report.when != "collect" and report.failed else None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, config: pytest.Config) -> Iterator[None]:
        """Print the table after the output of pytest and its other plugins."""
        outcome = yield
        if self.results or self.failed:
            self._tell()
        for reason in self.skipped:
            self._reporter.write_line(f"Left out: {reason}", yellow=True)
        not_ended = [name for node, name in self._names.items() if node not in self._ended]
        if not_ended and not config.option.collectonly:
            self._reporter.write_line(f"Not measured: {'; '.join(not_ended)}", yellow=True)
        if self.left:
            self._reporter.write_line(selection.left_out(self.left))
        return outcome

    def _elapsed(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self._started), 60)
        return f"{minutes}:{seconds:02d}"

    def _tell(self) -> None:
        run, write = self._run(), self._reporter.write_line
        lines = tables.aligned(throughput.table([*run["benchmarks"], *run["failed"]]))
        if self.earlier is not None:
            lines += ["", *tables.aligned(throughput.comparison(run, self.earlier))]
        if not lines:
            return
        self._reporter.section("SMOKE RUN, figures mean nothing" if _smoke(run) else "result")
        for line in lines:
            write(line)
        write("")
        for name, value in markdown.heading(run):
            write(f"{name}: {value}")
        write(f"peak memory of all processes together: {self.peak_mib:.0f} MiB")
        write(f"took {self._elapsed()} min")
        self._write(run)

    def _write(self, run: Mapping[str, Any]) -> None:
        whole = not self._narrowed and not self.failed and throughput.complete(run["benchmarks"])
        default = FOLDER / ("smoke" if _smoke(run) else "latest" if whole else "partial")
        stem = self.config.getoption("--results") or default
        try:
            written, missing = markdown.write(run, stem, self.earlier)
        except OSError as error:
            self._reporter.write_line(f"NOT WRITTEN: {error}; choose another --results", red=True)
            return
        self._reporter.write_line(f"wrote {', '.join(map(str, written))}")
        if missing:
            self._reporter.write_line(f"no picture: {missing}")

    def _run(self) -> dict[str, Any]:
        """Return the results in the form of pytest-benchmark's JSON, made with its hooks."""
        hook = self.config.hook
        machine = hook.pytest_benchmark_generate_machine_info(config=self.config)
        hook.pytest_benchmark_update_machine_info(config=self.config, machine_info=machine)
        return {
            "machine_info": machine,
            "commit_info": hook.pytest_benchmark_generate_commit_info(config=self.config),
            "datetime": datetime.now(timezone.utc).isoformat(),
            "benchmarks": list(self.results.values()),
            "failed": self.failed,
        }


def _smoke(run: Mapping[str, Any]) -> bool:
    return bool(run["machine_info"].get("smoke"))
