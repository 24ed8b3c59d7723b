"""The benchmarks' report: from results as pytest-benchmark stores them to tables and an image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bench.report import markdown, picture, tables
from fastunit.common.errors import DataError
from tests.support.benchmarks import cells

MACHINE = {
    **{"node": "here", "gpu": "NVIDIA TEST", "driver": "1.2", "torch": "2.0", "threads": 4},
    **{"tflop_per_s": 800.0, "gb_per_s": 3000.0, "sm_clock": "1980 MHz", "cpu": {"brand_raw": "X"}},
}
COMMIT = {"id": "0123456789abcdef", "dirty": False}


def times(median: float, peak: int) -> dict:
    found = {"p20_ms": 0.9 * median, "median_ms": median, "p80_ms": 1.2 * median}
    return found | {"images_per_s": 2000 / median, "peak_mib": peak}


def result(function: str, params: dict, facts: dict) -> dict:
    name = f"{function}[{'-'.join(map(str, params.values()))}]"
    stats = {"median": 0.01, "q1": 0.009, "q3": 0.012}
    where = {"name": name, "fullname": f"bench/x.py::{name}", "params": params}
    return {**where, "extra_info": facts, "stats": stats}


def compared(function: str, size: int, batch: int, **facts: object) -> dict:
    """Return a result of `opponents.compare`; its opponents are the facts but for floor_..."""
    names = [name for name in facts if not name.endswith(("_ratio", "_ms", "_percent"))]
    return result(function, {"size": size, "batch": batch}, {"opponents": names, **facts})


STEPS = [
    compared(
        *("bench_opponents", 256, 1),
        **{"fastunit": times(8, 2000), "baseline": times(64, 5000), "baseline_ratio": 7.9},
        **{"strongest": times(14, 2500), "strongest_ratio": 1.7},
        **{"floor_ms": 4.0, "floor_percent": 50.0},
    ),
    compared(
        *("bench_opponents", 512, 8),
        **{"fastunit": times(1234.5, 60000), "baseline": "out of memory"},
        **{"floor_ms": 99.0, "floor_percent": 8.0},
    ),
]
ABLATION = compared(
    *("bench_ablation", 256, 1),
    **{"all on": times(8, 2000), "without X": times(12, 2100), "without X_ratio": 1.51},
)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes results as pytest-benchmark does and returns the path."""

    def write(name: str, results: list, **changes: object):
        path = tmp_path / name
        run = {"benchmarks": results, "machine_info": MACHINE, "commit_info": COMMIT}
        path.write_text(json.dumps(run | {"datetime": "2026-01-31T12:00:00.5"} | changes))
        return path

    return write


def test_steps_with_and_without_every_opponent():
    header, marks, first, second = cells(tables.times(STEPS))
    rows = [dict(zip(header, row, strict=True)) for row in (first, second)]
    assert rows[0] == {
        **{"size": "256x256", "batch": "1", "fastunit images/s": "250"},
        **{"fastunit ms": "8.00 (7.20 to 9.60)", "baseline ms": "64.0 (57.6 to 76.8)"},
        **{"strongest ms": "14.0 (12.6 to 16.8)", "floor ms": "4.00", "floor, % of ours": "50"},
        **{"baseline / fastunit": "7.90", "strongest / fastunit": "1.70"},
    }
    assert rows[1]["baseline ms"] == "out of memory" and rows[1]["baseline / fastunit"] == "-"
    assert rows[1]["strongest ms"] == "-" and rows[1]["fastunit ms"] == "1234 (1111 to 1481)"
    assert set(marks) == {"--:"}


def test_columns_that_say_nothing_are_left_out():
    header = cells(tables.times(STEPS[1:]))[0]
    assert "baseline ms" in header and "baseline / fastunit" not in header
    assert tables.times([]) == tables.memory([]) == tables.ablation([]) == []


def test_memory_is_compared_the_other_way():
    header, _, row, _ = cells(tables.memory(STEPS))
    found = dict(zip(header, row, strict=True))
    assert found["fastunit MiB"] == "2000" and found["fastunit / baseline"] == "0.40"


def test_ablation_names_each_saving():
    header, _, everything, without = cells(tables.ablation([*STEPS, ABLATION]))
    assert header == ["case", "step", "ms", "/ all on", "MiB"]
    assert everything[1:4] == ["all on", "8.00 (7.20 to 9.60)", "-"]
    assert without == ["256x256, batch 1", "without X", "12.0 (10.8 to 14.4)", "1.51", "2100"]


def test_operations_put_implementations_side_by_side():
    def layer(implementation: str, **facts: float) -> dict:
        params = {"name": "first", "implementation": implementation, "direction": "dgrad"}
        return result("bench_conv_gemm", params, facts)

    norm = {"norm": "in", "size": 64, "implementation": "ours", "mode": "forward"}
    found = [
        layer("channels_last", median_us=60.0),
        layer("ours", median_us=50.0, tflop_per_s=600.0, percent_of_matmul=75.0),
        layer("eager", median_us=90.0),
        result("bench_norm_act", norm, {"median_us": 5.0, "gb_per_s": 2400.0}),
    ]
    header, _, first, second = cells(tables.operations(found, copy_gb_per_s=3000.0))
    assert dict(zip(header, first, strict=True)) == {
        **{"operation": "conv_gemm", "case": "first", "pass": "dgrad", "ours µs": "50.0"},
        **{"eager µs": "90.0", "cuDNN, NHWC µs": "60.0", "best other / ours": "1.20"},
        **{"TFLOP/s": "600", "% of matmul": "75.0", "GB/s": "-", "% of copy": "-"},
    }
    norm = dict(zip(header, second, strict=True))
    assert norm["case"] == "in, 64" and norm["pass"] == "forward" and norm["eager µs"] == "-"
    assert norm["GB/s"] == "2400" and norm["% of copy"] == "80.0"


def test_data_and_our_own_configurations():
    wait = {"images_per_s": 20.0, "data_wait": 0.013}
    found = [
        result("bench_data_wait", {"case": "demo"}, wait),
        result("bench_step", {"name": "photos"}, {"images_per_s": 5.0}),
    ]
    assert cells(tables.data(found))[2] == ["demo", "20.0", "1.3 %"]
    assert cells(tables.steps(found))[2] == ["photos", "10.0 (9.00 to 12.0)", "5.00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"),
        (1.0, "1.00"),
        (99.96, "100"),
        (999.7, "1000"),
        (1234.4, "1234"),
        (0, "0.00"),
        (None, "-"),
    ],
)
def test_numbers_have_three_digits_or_all_before_the_point(value, text):
    assert tables.number(value) == text


def test_page_says_what_was_measured_on_what(write, tmp_path, capsys):
    path = write("a.json", [*STEPS, ABLATION])
    assert markdown.main([str(path)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# Benchmarks: NVIDIA TEST\n")
    for words in (
        "| driver | 1.2 |",
        "800 TFLOP/s",
        "3000 GB/s",
        "0123456789 |",
        "2026-01-31 12:00",
    ):
        assert words in page
    for title in ("Training step", "Memory of the training step", "Ablations of the training step"):
        assert f"\n## {title}\n\n{markdown.NOTES[title]}\n\n|" in page
    assert "## Data" not in page
    markdown.main([str(path), "-o", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == page and capsys.readouterr().out == ""


def test_several_files_are_one_report_in_which_the_last_counts(write):
    again = compared("bench_opponents", 256, 1, fastunit=times(7, 2000))
    run = markdown.merged([write("a.json", STEPS), write("b.json", [again, ABLATION])])
    assert run["benchmarks"] == [again, STEPS[1], ABLATION]


def test_results_that_do_not_fit_are_refused(write, tmp_path):
    path = write("a.json", STEPS)
    other = write("b.json", [ABLATION], commit_info={"id": "ffff"})
    with pytest.raises(DataError, match=r"b\.json is of another machine or commit"):
        markdown.merged([path, other])
    other.write_text("{}")
    with pytest.raises(DataError, match=r"b\.json holds no results.*--benchmark-json"):
        markdown.merged([other])
    with pytest.raises(DataError, match="cannot read the results"):
        markdown.merged([tmp_path / "absent.json"])


def test_bars_of_the_picture_are_as_long_as_the_ratios(write, tmp_path):
    path, image = write("a.json", STEPS), tmp_path / "x.png"
    assert markdown.main([str(path), "-o", str(tmp_path / "x.md"), "--picture", str(image)]) == 0
    pixels = np.asarray(Image.open(image).convert("RGB"))
    # The most pixels of each colour in any row: ours 1, baseline 7.9, strongest 1.7.
    ours, baseline, strongest = (widest(pixels, colour) for colour in picture.COLOURS[:3])
    assert 0 < ours < strongest < baseline
    assert baseline / strongest == pytest.approx(7.9 / 1.7, rel=0.02)
    assert widest(pixels, picture.FLOOR_COLOUR) > 0


def widest(pixels: np.ndarray, colour: str) -> int:
    """Return the most pixels of a colour in any row."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == wanted).all(-1).sum(1).max())


def test_without_steps_there_is_no_picture(tmp_path):
    assert not picture.shows([])
    with pytest.raises(DataError, match="no picture"):
        picture.draw([], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_report_of_a_gpu_is_written_beside_its_numbers(write, tmp_path):
    run = markdown.merged([write("a.json", [*STEPS, ABLATION])])
    written, missing = markdown.write(run, tmp_path / "new" / "nvidia-test-2026-01-31")
    assert [path.suffix for path in written] == [".json", ".md", ".png"] and not missing
    assert json.loads(written[0].read_text()) == run
    assert written[1].read_text() == markdown.page(run)
    written, missing = markdown.write(run | {"benchmarks": []}, tmp_path / "none")
    assert [path.suffix for path in written] == [".json", ".md"] and missing
