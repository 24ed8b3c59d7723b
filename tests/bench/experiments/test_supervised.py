"""bench.experiments.supervised and demo_picture, on a demo of a few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.experiments import demo_picture, supervised
from fastunit import config
from fastunit.data import builtin
from fastunit.data.discovery import image_files
from fastunit.report.grid import GAP, LABEL
from fastunit.training.state import TrainState

DOMAINS = ("trainA", "trainB", "testA", "testB")


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> Path:
    root = builtin.demo_root(4, 6)
    monkeypatch.setattr(builtin, "demo_root", lambda: root)
    return root


def test_training_pairs_are_the_demos_own_scenes_and_none_of_the_test(small_demo, tmp_path):
    builtin.draw_training_pairs(tmp_path, 4)
    day, night = (image_files(tmp_path / name) for name in ("trainA", "trainB"))
    assert [file.name for file in day] == [file.name for file in night]
    pictures = {name: [f.read_bytes() for f in image_files(small_demo / name)] for name in DOMAINS}
    assert [file.read_bytes() for file in day] == pictures["trainA"]
    others = pictures["trainB"] + pictures["testB"] + pictures["testA"]
    assert not {file.read_bytes() for file in [*day, *night]} & set(others)
    for a, b in zip(day, night, strict=True):  # one scene: the same outlines, darker
        edges = [np.diff(np.asarray(Image.open(file).convert("L"), float)) for file in (a, b)]
        assert np.corrcoef(*(np.abs(edge[40:]).ravel() for edge in edges))[0, 1] > 0.3


def test_both_directions_are_descended_and_averaged(tiny):
    changes = {"ema_decay": 0.5, "share_fakes": False}
    session = TrainState(config.from_dict(tiny | changes), torch.device("cpu"))
    discriminators = [weight.clone() for weight in session.unit.discriminators()]
    supervised.supervise(session.step)
    x_a, x_b = torch.rand(2, 2, 3, 16, 16)
    before = [weight.clone() for weight in session.generator_pair.parameters()]
    first = session.advance(x_a, x_b)
    assert session.iteration == 1
    after = list(session.generator_pair.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for _ in range(20):
        last = session.advance(x_a, x_b)
    assert all(last[way] < first[way] for way in ("a2b", "b2a"))
    same = zip(discriminators, session.unit.discriminators(), strict=True)
    assert all(torch.equal(*weights) for weights in same)


def test_pairs_are_cropped_and_flipped_alike(small_demo, tiny, tmp_path):
    builtin.draw_training_pairs(tmp_path, 4)
    settings = config.from_dict(tiny)
    same = [supervised._loader(settings, tmp_path / "trainA") for _ in range(2)]
    for _ in range(5):
        assert torch.equal(*map(next, same))


def test_the_ceiling_is_printed_for_every_seed(small_demo, tiny, capsys):
    changes = [f"{key}={json.dumps(value)}" for key, value in tiny.items()]
    sets = [word for change in [*changes, "max_iter=1"] for word in ("--set", change)]
    assert supervised.main(["--seeds", "0", "5", *sets]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("seed")] == ["seed 0", "seed 5"]
    assert out.count("held-out pairs: 6") == 2 and out.count("position statistics  ") == 2


def test_the_picture_has_six_labelled_rows(small_demo, save_networks, tmp_path):
    save_networks(tmp_path / "run", data={"builtin": "scenes"}, new_size=32)
    path = tmp_path / "demo.png"
    assert demo_picture.main([str(tmp_path / "run"), str(path)]) == 0
    grid = np.asarray(Image.open(path))
    row = 64 + LABEL + GAP
    assert grid.shape == (6 * row + GAP, 6 * (64 + GAP) + GAP, 3)
    labels = [grid[GAP + index * row :][:LABEL] for index in range(6)]
    assert all(label.min() < 100 for label in labels)
    assert len({label.tobytes() for label in labels}) == 6
    rows = [grid[GAP + index * row + LABEL :][:64] for index in range(6)]
    assert np.array_equal(rows[0], rows[5]) and np.array_equal(rows[2], rows[3])
    assert rows[0].mean() > rows[2].mean() + 50  # by day and by night


def test_a_folder_without_a_run_is_one_message(tmp_path, capsys):
    assert demo_picture.main([str(tmp_path), str(tmp_path / "demo.png")]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
