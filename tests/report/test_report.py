"""Sample grids, the metrics files, and the loss curves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastunit.report.curves import curves_svg
from fastunit.report.grid import GAP, LABEL, save_grid
from fastunit.report.metrics import Metrics, read_metrics


def _grid(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


def _lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def _scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


# ---- grids


def test_a_grid_shows_every_picture_where_it_belongs(tmp_path: Path) -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0])
    a = levels[:, None, None, None].expand(3, 3, 100, 120)
    b = a.flip(0)[:, :1, :, :100]  # one channel and another width
    save_grid({"input a": a, "a to b": b}, tmp_path / "grid.png")
    grid = _grid(tmp_path / "grid.png")
    assert grid.shape == (2 * (100 + LABEL + GAP) + GAP, 3 * (120 + GAP) + GAP, 3)
    row_a, row_b = GAP + LABEL + 50, GAP + LABEL + 100 + GAP + LABEL + 50
    for column, (level_a, level_b) in enumerate([(0, 255), (128, 128), (255, 0)]):
        assert (grid[row_a, GAP + column * (120 + GAP) + 60] == level_a).all()
        assert (grid[row_b, GAP + column * (100 + GAP) + 50] == level_b).all()


def test_each_row_of_a_grid_has_its_own_readable_label(tmp_path: Path) -> None:
    images = torch.ones(2, 3, 100, 100)
    save_grid({"input a": images, "a to b to a": images}, tmp_path / "grid.png")
    grid = _grid(tmp_path / "grid.png")
    labels = [grid[top : top + LABEL].min(-1) < 100 for top in (GAP, GAP + 100 + LABEL + GAP)]
    heights = [np.flatnonzero(label.any(1)) for label in labels]
    assert all(rows.max() - rows.min() >= 9 for rows in heights), "letters under 10 pixels"
    widths = [np.flatnonzero(label.any(0)).max() for label in labels]
    assert widths[1] > widths[0] + 10, "the longer label is not longer"


def test_small_pictures_are_enlarged_without_blur(tmp_path: Path) -> None:
    images = torch.full((1, 3, 32, 32), -1.0)
    images[0, 0, 10, 20] = 1.0
    save_grid({"a": images}, tmp_path / "grid.png")
    grid = _grid(tmp_path / "grid.png")[GAP + LABEL :, GAP:]
    red = np.argwhere((grid == [255, 0, 0]).all(-1))
    assert sorted(map(tuple, red.tolist())) == [(20, 40), (20, 41), (21, 40), (21, 41)]


def test_values_beyond_the_range_and_channels_last_are_drawn(tmp_path: Path) -> None:
    images = torch.empty(1, 3, 96, 96).to(memory_format=torch.channels_last)
    images[:] = torch.tensor([-7.0, 0.0, 7.0])[:, None, None]
    images.requires_grad_()
    save_grid({"a": images}, tmp_path / "grid.png")
    assert (_grid(tmp_path / "grid.png")[GAP + LABEL + 40, GAP + 40] == [0, 128, 255]).all()


def test_a_failed_grid_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_grid({"a": torch.zeros(1, 3, 8, 8)}, tmp_path / "grid.png")
    before = (tmp_path / "grid.png").read_bytes()

    def full_disk(self: Image.Image, path: Path) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_grid({"a": torch.ones(1, 3, 8, 8)}, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


# ---- metrics


def test_metrics_reach_the_jsonl_file_and_tensorboard(tmp_path: Path) -> None:
    with Metrics(tmp_path / "run") as metrics:
        metrics.write(1, {"cycle_a": 0.5, "kl_a": 2.0})
        metrics.write(2, {"cycle_a": 0.25})
    first, second = (json.loads(line) for line in _lines(tmp_path / "run"))
    assert first | {"time": 0} == {"iteration": 1, "time": 0, "cycle_a": 0.5, "kl_a": 2.0}
    assert second | {"time": 0} == {"iteration": 2, "time": 0, "cycle_a": 0.25}
    assert 0 <= first["time"] <= second["time"] < 60
    assert _scalars(tmp_path / "run", "cycle_a") == [(1, 0.5), (2, 0.25)]


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(7, {"kl_a": 1.0})
        assert [record["iteration"] for record in read_metrics(tmp_path)] == [7]


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
    height, width, _ = _grid(tmp_path / "grid.png").shape
    assert (event.step, event.width, event.height) == (30, width, height)


def test_resuming_drops_what_came_after(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for iteration in (10, 20, 30):
            metrics.write(iteration, {"kl_a": 1.0})
    with Metrics(tmp_path, resume_from=20) as metrics:
        metrics.write(30, {"kl_a": 5.0})
    records = [(record["iteration"], record["kl_a"]) for record in read_metrics(tmp_path)]
    assert records == [(10, 1.0), (20, 1.0), (30, 5.0)]
    assert _scalars(tmp_path, "kl_a") == records


def test_a_run_that_begins_anew_drops_all_of_the_crashed_one(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(10, {"kl_a": 1.0})
    with Metrics(tmp_path) as metrics:
        metrics.write(5, {"kl_a": 2.0})
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [5]
    assert _scalars(tmp_path, "kl_a") == [(5, 2.0)]


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


# ---- curves


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter()]


def test_curves_are_grouped_and_unrecorded_losses_have_no_panel() -> None:
    records = [{"iteration": i, "kl_a": 1.0 + i, "cycle_b": 2.0 - i} for i in range(50)]
    texts = _texts(curves_svg(records))
    assert {"KL of the codes", "kl_a", "cycle (L1)", "cycle_b"} <= set(texts)
    assert not {"kl_b", "perceptual", "totals"} & set(texts)


def test_curves_can_be_drawn_from_any_records() -> None:
    assert "KL" not in "".join(_texts(curves_svg([])))
    assert "kl_a" in _texts(curves_svg([{"iteration": 10, "kl_a": 1.0}]))
    records = [{"iteration": 10, "kl_a": "nan"}, {"iteration": 20, "kl_b": 1.0}]
    texts = _texts(curves_svg(records))
    assert "kl_b" in texts
    assert "kl_a" not in texts


def test_curves_of_a_long_run_stay_small_and_follow_the_theme() -> None:
    noise = np.random.default_rng(0).normal(size=20_000).tolist()
    svg = curves_svg([{"iteration": i, "kl_a": y} for i, y in enumerate(noise)])
    assert len(svg) < 200_000
    assert "currentColor" in svg
    assert "#000000" not in svg
