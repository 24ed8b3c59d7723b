"""Losses come back as means; the first that is not finite is named with its iteration."""

from __future__ import annotations

import pytest
import torch

from fastunit.errors import TrainingDiverged
from fastunit.monitor import LossMonitor


def losses(x: float, y: float) -> dict[str, torch.Tensor]:
    return {"kl_a": torch.tensor(x), "generator_total": torch.tensor(y)}


def test_flush_gives_the_mean_since_the_last_flush():
    monitor = LossMonitor()
    monitor.add(1, losses(1.0, 10.0))
    monitor.add(2, losses(3.0, 20.0))
    assert monitor.flush() == {"kl_a": 2.0, "generator_total": 15.0}
    monitor.add(3, losses(7.0, 0.0))
    assert monitor.flush() == {"kl_a": 7.0, "generator_total": 0.0}
    assert monitor.flush() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("read", ["flush", "drain"])
def test_the_first_bad_loss_and_iteration_are_named(value, read):
    monitor = LossMonitor()
    monitor.add(41, losses(1.0, 1.0))
    monitor.add(42, losses(value, float("nan")))
    monitor.add(43, losses(float("nan"), 1.0))
    with pytest.raises(TrainingDiverged, match=f"kl_a became {value} at iteration 42"):
        getattr(monitor, read)()


@pytest.mark.gpu
def test_on_cuda_a_flush_returns_the_block_before():
    monitor = LossMonitor()
    for iteration in (1, 2):
        monitor.add(iteration, {"kl_a": torch.tensor(float(iteration), device="cuda")})
        seen = monitor.flush()
        assert seen == ({} if iteration == 1 else {"kl_a": 1.0})
    monitor.add(3, {"kl_a": torch.tensor(float("nan"), device="cuda")})
    with pytest.raises(TrainingDiverged, match="iteration 3"):
        monitor.drain()
