"""What becomes of a capture that fails, without a GPU: its calls are replaced."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastunit.common.errors import UserError
from fastunit.training import cuda_graph
from fastunit.training.cuda_graph import WARM_UP, GraphedStep

CPU = torch.device("cpu")


@contextmanager
def failing(*args, **options):
    yield
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def without_gpu(monkeypatch):
    """Replace what a capture calls; the calls of `synchronize` may raise what the list holds."""
    errors: list[Exception] = []

    def synchronize(device):
        if errors:
            raise errors[0]

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", failing)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(cuda_graph, "_on_graph_stream", lambda stream, run, *images: run(*images))
    return errors


def steps(graphed, count=WARM_UP + 2):
    return [graphed(torch.full((2,), float(n)), torch.zeros(2))["sum"] for n in range(count)]


def step(x_a, x_b):
    return {"sum": (x_a + x_b).sum()}


def test_the_step_goes_on_uncaptured(without_gpu, caplog):
    with caplog.at_level(logging.WARNING, "fastunit"):
        found = steps(GraphedStep(step, required=False))
    assert found == [2 * n for n in range(WARM_UP + 2)]
    (record,) = caplog.records
    assert "graphs off: the step cannot be captured: operation not" in record.getMessage()


def test_a_device_that_is_lost_ends_the_run_with_the_remedy(without_gpu):
    without_gpu.append(RuntimeError("CUDA error: unspecified launch failure"))
    graphed = GraphedStep(step, required=False)
    assert len(steps(graphed, WARM_UP)) == WARM_UP
    with pytest.raises(UserError, match=r"operation not permitted .* with --set graphs=off"):
        steps(graphed, 1)


def test_a_graph_that_is_required_raises_what_cuda_said(without_gpu):
    with pytest.raises(RuntimeError, match="not permitted"):
        steps(GraphedStep(step, required=True))
