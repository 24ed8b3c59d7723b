"""deterministic: true gives the same bits, and leaves PyTorch's switches as they were."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastunit.training import checkpoint
from fastunit.training.state import TrainState

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def test_two_runs_have_the_same_bits(command, monkeypatch):
    advance, seen = TrainState.advance, []

    def looking(self, x_a, x_b):
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE)))
        return advance(self, x_a, x_b)

    monkeypatch.setattr(TrainState, "advance", looking)
    for name in ("one", "two"):
        code, _, _ = command("--output", name, "--max-iter", 3, "--set", "deterministic=true")
        assert code == 0
    assert set(seen) == {(True, ":4096:8")} and not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ
    one, two = (
        checkpoint.load(checkpoint.path_of(Path(name), 3))["unit"] for name in ("one", "two")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
