"""Losses come back as means under their own iteration; what is not finite is named."""

from __future__ import annotations

import pytest
import torch

from fastunit.common.errors import TrainingDiverged
from fastunit.training import loss_monitor as module
from fastunit.training.loss_monitor import LossMonitor


def losses(x: float, y: float, device: str = "cpu") -> dict[str, torch.Tensor]:
    return {
        "kl_a": torch.tensor(x, device=device),
        "generator_total": torch.tensor(y, device=device),
    }


def test_a_record_holds_the_means_since_the_last_one():
    monitor = LossMonitor()
    monitor.add(1, losses(1.0, 10.0))
    monitor.add(2, losses(3.0, 20.0))
    means = {"kl_a": 2.0, "generator_total": 15.0}
    assert monitor.flush({"learning_rate": 0.5}) == [(2, means | {"learning_rate": 0.5})]
    monitor.add(3, losses(7.0, 0.0))
    assert monitor.flush({}) == [(3, {"kl_a": 7.0, "generator_total": 0.0})]
    assert monitor.flush({}) == [] and monitor.drain() == []


def test_a_look_between_records_does_not_end_one():
    monitor = LossMonitor()
    for iteration in (1, 2, 3, 4):
        monitor.add(iteration, losses(float(iteration), 0.0))
        if iteration in (1, 2):
            assert monitor.flush(None) == []
        if iteration == 3:
            assert monitor.drain() == []
    assert monitor.flush({}) == [(4, {"kl_a": 2.5, "generator_total": 0.0})]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "read", [lambda m: m.flush(None), lambda m: m.flush({}), LossMonitor.drain]
)
def test_the_first_bad_loss_and_iteration_are_named(value, read):
    monitor = LossMonitor()
    monitor.add(41, losses(1.0, 1.0))
    monitor.add(42, losses(value, float("nan")))
    monitor.add(43, losses(float("nan"), 1.0))
    with pytest.raises(TrainingDiverged, match=f"kl_a became {value} at iteration 42"):
        read(monitor)


def check_late_records(device: str) -> None:
    monitor, records = LossMonitor(), []
    for iteration in range(1, 9):
        monitor.add(iteration, losses(float(iteration), 0.0, device))
        if iteration % 2 == 0:
            records += monitor.flush({"at": float(iteration)})
        if iteration == 4:
            assert [r[0] for r in records] == [2]  # the newest block is still on its way
            records += monitor.drain()
    records += monitor.drain()
    assert [r[0] for r in records] == [2, 4, 6, 8]
    assert [r[1]["kl_a"] for r in records] == [1.5, 3.5, 5.5, 7.5]
    assert [r[1]["at"] for r in records] == [2, 4, 6, 8]


def test_late_blocks_keep_their_iteration(monkeypatch):
    """What CUDA does, with blocks on the CPU that are marked as still on their way."""

    class Event:
        def synchronize(self) -> None:
            pass

    class Late(module._Block):
        def __init__(self, iterations, values, ready, extra) -> None:
            super().__init__(iterations, values, Event(), extra)

    monkeypatch.setattr(module, "_Block", Late)
    check_late_records("cpu")


@pytest.mark.gpu
def test_on_cuda_records_come_late_and_whole():
    check_late_records("cuda")
