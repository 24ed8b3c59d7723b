"""Held-out images for the sample grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit import config
from fastunit.data import passed
from fastunit.data.discovery import Domains
from fastunit.training import held_out


def test_shown_images_are_spread_over_the_test_set(tmp_path: Path, tiny) -> None:
    files = []
    for level in range(0, 250, 50):  # neighbours are alike, as frames of a film are
        Image.fromarray(np.full((20, 20, 3), level, np.uint8)).save(tmp_path / f"{level:03d}.png")
        files.append(tmp_path / f"{level:03d}.png")
    domains = Domains((), (), tuple(files), tuple(files[::-1]))
    settings = config.from_dict(tiny | {"display_size": 3})
    x_a, x_b = held_out.shown_images(domains, settings, torch.device("cpu"))
    levels = [((x + 1) * 127.5).round().mean((1, 2, 3)).tolist() for x in (x_a, x_b)]
    assert levels == [[0, 100, 200], [200, 100, 0]]


def test_pairs_that_passed_the_check_are_not_decoded_again(tmp_path: Path, tiny, monkeypatch):
    """A start with 400 pairs took 13 s more."""
    files = {split: [tmp_path / split / f"{i}.png" for i in range(3)] for split in ("a", "b")}
    domains = Domains((), (), tuple(files["a"]), tuple(files["b"]))
    monkeypatch.setattr(held_out, "read", lambda *args: pytest.fail("a pair was decoded"))
    settings = config.from_dict(tiny)
    for file in files["a"] + files["b"]:
        passed.add(file, bytes(16), 20, 24)
    assert len(held_out.find_pairs(domains, settings)) == 3
    passed.add(files["b"][1], bytes(16), 24, 20)
    assert held_out.find_pairs(domains, settings) == []
