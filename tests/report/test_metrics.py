"""Metrics in the JSON lines file and in TensorBoard."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastunit.report import groups
from fastunit.report.grid import save_grid
from fastunit.report.metrics import Metrics, read_metrics


def _lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def _scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_metrics_reach_the_jsonl_file_and_tensorboard(tmp_path: Path) -> None:
    with Metrics(tmp_path / "run") as metrics:
        metrics.write(1, {"cycle_a": 0.5, "kl_a": 2.0})
        metrics.write(2, {"cycle_a": 0.25})
    first, second = (json.loads(line) for line in _lines(tmp_path / "run"))
    assert first | {"time": 0} == {"iteration": 1, "time": 0, "cycle_a": 0.5, "kl_a": 2.0}
    assert second | {"time": 0} == {"iteration": 2, "time": 0, "cycle_a": 0.25}
    assert 0 <= first["time"] <= second["time"] < 60
    assert _scalars(tmp_path / "run", "cycle/cycle_a") == [(1, 0.5), (2, 0.25)]


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(7, {"kl_a": 1.0})
        assert [record["iteration"] for record in read_metrics(tmp_path)] == [7]


def test_tags_are_grouped_as_the_page_is_and_others_keep_their_names(tmp_path: Path) -> None:
    names = [name for group in groups.LOSSES for name in group.names]
    assert sorted(names) == sorted(set(names))
    wanted = {f"{group.tag}/{name}" for group in groups.LOSSES for name in group.names}
    wanted |= {"run/learning_rate", "run/images_per_s", "run/data_wait", "target_accuracy"}
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {tag.rpartition("/")[2]: 1.0 for tag in wanted})
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == wanted


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    values = {"kl_a": float("nan"), "kl_b": float("inf"), "cycle_a": -float("inf")}
    with Metrics(tmp_path) as metrics:
        metrics.write(1, values)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(_lines(tmp_path)[0], parse_constant=refuse)
    assert [record[name] for name in values] == ["nan", "inf", "-inf"]
    assert read_metrics(tmp_path) == [record]


def test_images_reach_tensorboard(tmp_path: Path) -> None:
    save_grid({"a": torch.zeros(1, 3, 96, 96)}, tmp_path / "grid.png")
    with Metrics(tmp_path) as metrics:
        metrics.image("samples", tmp_path / "grid.png", 30)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Images("samples")
    with Image.open(tmp_path / "grid.png") as image:
        assert (event.step, event.width, event.height) == (30, *image.size)


def test_resuming_drops_what_came_after(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for iteration in (10, 20, 30):
            metrics.write(iteration, {"kl_a": 1.0})
    with Metrics(tmp_path, resume_from=20) as metrics:
        metrics.write(30, {"kl_a": 5.0})
    records = [(record["iteration"], record["kl_a"]) for record in read_metrics(tmp_path)]
    assert records == [(10, 1.0), (20, 1.0), (30, 5.0)]
    assert _scalars(tmp_path, "kl/kl_a") == records


def test_a_run_that_begins_anew_drops_all_of_the_crashed_one(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(10, {"kl_a": 1.0})
    with Metrics(tmp_path) as metrics:
        metrics.write(5, {"kl_a": 2.0})
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [5]
    assert _scalars(tmp_path, "kl/kl_a") == [(5, 2.0)]


@pytest.mark.parametrize("torn", [b'{"iteration": 20, "ti', b"\x00\x00\x00", b"\xff\xfe{"])
def test_a_torn_last_line_is_tolerated(torn: bytes, tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(10, {"kl_a": 1.0})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [10]
    with Metrics(tmp_path, resume_from=15) as metrics:
        metrics.write(20, {"kl_a": 2.0})
    assert [json.loads(line)["iteration"] for line in _lines(tmp_path)] == [10, 20]


def test_of_very_many_records_few_are_read(tmp_path: Path) -> None:
    lines = [json.dumps({"iteration": i, "kl_a": 1.0}) + "\n" for i in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    read = [record["iteration"] for record in read_metrics(tmp_path, most=1000)]
    assert read == list(range(0, 5000, 8))
    assert len(read_metrics(tmp_path, most=5000)) == len(read_metrics(tmp_path)) == 5000


def test_resuming_takes_no_memory_for_each_record(tmp_path: Path) -> None:
    lines = [json.dumps({"iteration": i, "kl_a": 1.0}) + "\n" for i in range(20_000)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    tracemalloc.start()
    Metrics(tmp_path, resume_from=19_000).close()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2e6 and len(_lines(tmp_path)) == 19_001
