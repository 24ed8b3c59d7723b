"""What a training step costs the host: the Python calls of this package, and how deep they nest."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

import fastunit
from fastunit import config
from fastunit.models.layers import moved
from fastunit.models.unit import UNIT
from fastunit.training.step import TrainStep

PACKAGE = str(Path(fastunit.__file__).parent)
TINY = (
    "batch_size=1", "crop_image_height=16", "crop_image_width=16", "new_size=16", "gen.dim=4",
    "dis.dim=4", "dis.num_scales=2", "dis.n_layer=2",
)  # fmt: skip


def is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE)


@pytest.fixture
def step() -> TrainStep:
    """Return a step of tiny networks that has run: what is remembered from call to call is."""
    settings = config.load("photos", list(TINY))
    step = TrainStep(moved(UNIT(settings)), settings)
    for _ in range(2):
        step(*batch())
    return step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.rand(2, 1, 16, 16, 3).permute(0, 1, 4, 2, 3) * 2 - 1  # channels_last
    return x, y


def test_a_step_makes_few_python_calls(step):
    given, calls = batch(), Counter[str]()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and is_ours(frame.f_code):
            calls[f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"] += 1

    sys.setprofile(count)
    try:
        step(*given)
    finally:
        sys.setprofile(None)
    assert 1000 < calls.total() <= 2460, calls.most_common(20)  # 4055 once


def test_few_calls_lie_between_the_loop_and_a_convolution(step, monkeypatch):
    depths, convolve = [], torch.conv2d

    def conv2d(*args: Any) -> torch.Tensor:
        frame: FrameType | None = sys._getframe(1)
        depths.append(0)
        while frame is not None:
            depths[-1] += is_ours(frame.f_code)
            frame = frame.f_back
        return convolve(*args)

    monkeypatch.setattr(torch, "conv2d", conv2d)
    step(*batch())
    assert len(depths) == 104 and max(depths) <= 12
