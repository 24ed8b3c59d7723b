"""Grids of sample images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.report.grid import GAP, LABEL, cells, save_grid


def _grid(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        return np.asarray(picture)


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

    def full_disk(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_grid({"a": torch.ones(1, 3, 8, 8)}, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_the_images_of_a_grid_are_found_again(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 3 * 3 * 70 * 80).reshape(3, 3, 70, 80)
    save_grid({"input a": images, "a to b": images[:2, :1, :10, :20]}, tmp_path / "grid.png")
    found = cells(tmp_path / "grid.png")
    assert [(label, len(row)) for label, row in found.items()] == [("input a", 3), ("a to b", 2)]
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for image, wanted in zip(found["input a"], pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(image), wanted)
    assert found["a to b"][1].size == (7 * 20, 70)  # enlarged


def test_a_grid_of_another_origin_has_no_images(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "grid.png")
    assert cells(tmp_path / "grid.png") == {}
