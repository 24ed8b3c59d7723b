"""Throughput beside its baseline and an earlier run: tables, page and picture from results."""

from __future__ import annotations

import copy
import json

import pytest

from bench.report import machine, markdown, picture, tables, throughput
from fastunit.common.errors import DataError
from tests.support.benchmarks import cells

XEON = {"cpu": {"brand_raw": "Xeon X"}, "instructions": "AVX512, AMX", "cores": 2, "threads": 2}
XEON |= {"torch": "2.0", "load": 0.1}
EPYC = XEON | {"cpu": {"brand_raw": "EPYC Y"}, "instructions": "AVX2", "load": 3.2}


def times(median: float, images: int, peak: int | None) -> dict:
    found = {"p20_ms": 0.8 * median, "median_ms": median, "p80_ms": 1.25 * median}
    return found | {"images_per_s": 1000 * images / median, "peak_mib": peak}


def result(function: str, params: dict, **facts: object) -> dict:
    name = f"{function}[{'-'.join(map(str, params.values()))}]"
    stats = {"median": 0.01, "q1": 0.01, "q3": 0.01}
    return {"name": name, "fullname": name, "params": params, "extra_info": facts, "stats": stats}


def step(size: int, ours: float, theirs: float, **facts: object) -> dict:
    found = {"opponents": ["fastunit", "baseline"], "peak_all_mib": 2500}
    found |= {"fastunit": times(ours, 2, 700), "baseline": times(theirs, 2, 900)}
    found |= {"baseline_ratio": theirs / ours, "baseline_spread": [1.2, 1.6]}
    found["images_per_s"] = found["fastunit"]["images_per_s"]
    return result("bench_opponents", {"size": size, "batch": 1}, **found | facts)


def run(*results: dict, of: dict = XEON, commit: str = "0123456789abcdef") -> dict:
    when = {"datetime": "2026-01-31T12:00:00.5", "commit_info": {"id": commit, "dirty": False}}
    return {"benchmarks": list(results), "machine_info": of, **when}


STEP = step(64, 800, 1120)
TRANSLATE = result(
    "bench_translate",
    {"size": 128, "batch": 1},
    **STEP["extra_info"] | {"fastunit": times(100, 1, 20), "images_per_s": 10.0},
)
DATA = result("bench_pipeline", {"size": 256, "workers": 2}, **STEP["extra_info"])
NORM = result("bench_norm_act", {"norm": "ln", "mode": "forward"}, median_us=50.0)


def rows(lines: list[str]) -> list[dict[str, str]]:
    """Return the rows of a Markdown table, by its header."""
    header, _, *found = cells(lines)
    return [dict(zip(header, row, strict=True)) for row in found]


def test_rates_ratio_spread_and_memory_of_each_case():
    first, second, third = rows(throughput.table([STEP, NORM, TRANSLATE, DATA]))
    assert first == {
        **{"benchmark": "training step", "case": "64x64, batch 1"},
        **{"fastunit images/s": "2.50 (2.00 to 3.12)", "baseline images/s": "1.79 (1.43 to 2.23)"},
        **{"times as fast": "1.40", "p20 to p80": "1.20 to 1.60"},
        **{"fastunit MiB": "700", "baseline MiB": "900", "all processes MiB": "2500"},
    }
    assert second["benchmark"] == "translation" and second["case"] == "128x128, batch 1"
    assert third["benchmark"] == "data pipeline" and third["case"] == "256x256, workers 2"


def test_what_failed_has_a_row_too():
    alone = step(64, 800, 1120, baseline="failed")
    del alone["extra_info"]["baseline_ratio"], alone["extra_info"]["baseline_spread"]
    died = {"name": "bench_translate[64-1]", "params": {"size": 64, "batch": 1}, "extra_info": {}}
    found = rows(throughput.table([STEP, alone, died]))
    assert found[1]["baseline images/s"] == "failed" and found[1]["times as fast"] == "-"
    assert found[2]["fastunit images/s"] == found[2]["baseline images/s"] == "failed"
    page = markdown.page(run(STEP) | {"failed": [died]})
    assert "| translation | 64x64, batch 1 | failed | failed |" in page


def test_a_line_for_each_case():
    assert throughput.line(STEP) == "2.50 images/s, baseline 1.79: 1.40 times as fast"
    assert throughput.line(NORM) == "50.0 µs"
    assert throughput.line(result("bench_x", {})) == "10.0 ms"


def test_complete_is_what_has_every_kind_with_its_baseline():
    assert throughput.complete([STEP, TRANSLATE, DATA, NORM])
    assert not throughput.complete([STEP, TRANSLATE])
    alone = copy.deepcopy(DATA)
    del alone["extra_info"]["baseline_ratio"]
    assert not throughput.complete([STEP, TRANSLATE, alone])


def test_the_terminals_table_is_aligned():
    table = throughput.table([STEP, DATA])
    head, rule, *rows = tables.aligned(["words", *table])[1:]
    assert len(rows) == 2 and set(rule) == {"-", " "} and len(head) == len(rule)
    ends = [
        line.index(rate) + len(rate) for line, rate in zip(rows, ("3.12)", "3.12)"), strict=True)
    ]
    assert ends[0] == ends[1] and "|" not in head
    assert tables.aligned([]) == [] and tables.aligned(["words"]) == ["words"]


# ---- an earlier run


def test_comparison_on_the_same_machine():
    then = run(step(64, 1600, 1600), DATA, NORM, commit="ffffffffffff")
    faster = copy.deepcopy(NORM)
    faster["extra_info"]["median_us"] = 25.0
    lines = throughput.comparison(run(STEP, TRANSLATE, faster), then)
    first, second = rows(lines)
    assert first == {
        **{"benchmark": "training step", "case": "64x64, batch 1", "unit": "images/s"},
        **{"then": "1.25", "now": "2.50", "times as fast as then": "2.00"},
        **{"vs baseline, then": "1.00", "vs baseline, now": "1.40"},
    }
    assert second["unit"] == "µs" and second["times as fast as then"] == "2.00"
    text = "\n".join(lines)
    assert "the run of 2026-01-31 12:00, commit ffffffffff" in text and "SAME" not in text
    assert "Not in the earlier run: translation 128x128, batch 1." in text
    assert "Only in the earlier run: data pipeline 256x256, workers 2." in text


def test_another_machine_or_setup_is_said():
    other = EPYC | {"threads": 1, "smoke": True}
    (text,) = filter(None, throughput.differences(run(STEP), run(STEP, of=other)))
    assert text.startswith("NOT THE SAME SETUP")
    assert "processor: EPYC Y (AVX2) then, Xeon X (AVX512, AMX) now" in text
    assert "threads: 1 then, 2 now" in text and "smoke run: True then, none now" in text
    assert "cores" not in text and "load" not in text
    assert throughput.differences(run(STEP), run(STEP, of=XEON | {"load": 9.0})) == []


def test_runs_without_a_common_benchmark_say_so():
    assert "No benchmark of this run is in it." in throughput.comparison(run(STEP), run(DATA))


def test_only_results_are_compared_with(tmp_path):
    with pytest.raises(DataError, match="cannot read the results"):
        markdown.read(tmp_path / "absent.json")
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(DataError, match="holds no results"):
        markdown.read(path)


# ---- what is written


def test_page_names_the_processor_and_whether_it_was_quiet(tmp_path):
    page = markdown.page(run(STEP, TRANSLATE, DATA), run(STEP, of=EPYC))
    assert page.startswith("# Benchmarks: Xeon X (AVX512, AMX)\n")
    assert "| CPU | Xeon X (AVX512, AMX), cores: 2, threads: 2 |" in page
    assert "| load | 0.10 before |" in page and "\n## Throughput\n" in page
    assert "\n## Earlier run\n" in page and "NOT THE SAME SETUP" in page
    assert machine.load(EPYC) == "3.20 before: NOT QUIET, something else ran"
    assert "smoke run" in markdown.page(run(STEP, of=XEON | {"smoke": True}))


def test_numbers_page_and_picture_are_written_and_read_again(tmp_path):
    now = run(STEP, TRANSLATE, DATA)
    written, missing = markdown.write(now, tmp_path / "new" / "x.y")
    assert [path.name for path in written] == ["x.y.json", "x.y.md", "x.y.png"] and not missing
    assert markdown.read(written[0]) == json.loads(json.dumps(now))
    assert written[2].stat().st_size > 10_000
    nothing, missing = markdown.write(run(NORM), tmp_path / "new" / "x.y")
    assert len(nothing) == 2 and missing and not written[2].exists()  # nor an earlier run's


def test_the_picture_shows_each_comparison_as_its_ratio(tmp_path, monkeypatch):
    bars = []
    monkeypatch.setattr(picture, "_finish", lambda axis, ticks, rows: bars.append((axis, ticks)))
    picture.draw([TRANSLATE, DATA, NORM], tmp_path / "x.png", "Xeon X")
    ((axis, ticks),) = bars
    assert [round(bar.get_width(), 2) for bar in axis.patches] == [1.4, 1.4]
    assert [label for _, label in ticks] == [
        "translation: 128x128, batch 1",
        "data pipeline: 256x256, workers 2",
    ]
