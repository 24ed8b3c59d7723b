"""What ``pytest bench/`` selects, and what it says it leaves out."""

from __future__ import annotations

from types import SimpleNamespace

from bench.report import selection
from tests.support.checkout import ROOT

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
