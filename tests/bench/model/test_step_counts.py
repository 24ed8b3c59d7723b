"""Bounds on what a training step of the release's networks launches, 256x256, as on a GPU.

The numbers are those of the code today. Whoever makes a step launch less
lowers them here; docs/performance.md has what a GPU would make of them.
"""

from __future__ import annotations

import functools

import pytest

from bench.model.gpu import H100
from bench.model.groups import FILLS, WEIGHTS
from bench.model.kernels import Compiler
from bench.model.recorded import record
from fastunit.config import from_dict
from fastunit.kernels.common import runtime

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")

# Upper bounds, without torch.compile, which fuses some of the losses' launches.
BOUNDS = {
    "launches, batch 1": 658,
    "launches, batch 8": 658,
    "Triton variants, batch 1 and 8 together": 66,
    "MB moved to lay weights and their gradients out, batch 1": 572,  # 553 with Triton 3.7
    "MB moved to lay weights and their gradients out, batch 8": 629,
    "MB set to zero": 1,
    "calls that make the host wait": 0,
}


@functools.cache
def step(batch):
    return record(from_dict({"batch_size": batch}), H100)


BATCHES = [1, pytest.param(8, marks=pytest.mark.slow)]


@pytest.mark.parametrize("batch", BATCHES)
def test_launches(batch):
    assert len(step(batch).events) <= BOUNDS[f"launches, batch {batch}"]


@pytest.mark.slow
def test_variants():
    events = step(1).events + step(8).events
    found = {event.variant.key for event in events if event.variant}
    assert len(found) <= BOUNDS["Triton variants, batch 1 and 8 together"]


@pytest.mark.parametrize("batch", BATCHES)
def test_traffic_of_weights(batch):
    bound = BOUNDS[f"MB moved to lay weights and their gradients out, batch {batch}"]
    assert megabytes(step(batch), WEIGHTS) <= bound


@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_of_filters_are_not_set_to_zero(batch):
    assert 0 < megabytes(step(batch), FILLS) <= BOUNDS["MB set to zero"]


def megabytes(found, group):
    """Return what the kernels of a group move."""
    compiler = Compiler(H100)
    events = [e for e, name in zip(found.events, found.names, strict=True) if name == group]
    compiler.prepare(events)
    costs = [compiler.cost(event) for event in events]
    return sum(cost.bytes_in + cost.bytes_out for cost in costs) / 1e6


@pytest.mark.parametrize("batch", BATCHES)
def test_the_host_does_not_wait(batch):
    waits = step(batch).waits
    assert sum(waits.values()) <= BOUNDS["calls that make the host wait"], waits


@pytest.mark.slow
def test_nothing_spills_with_float32_weights():
    """tests/kernels/test_aot.py compiles bf16 weights, which a step on a GPU does not have."""
    compiler = Compiler(H100)
    compiler.prepare(step(1).events)
    spilling = {
        event.work.name
        for event in step(1).events
        if event.variant and compiler.found[event.variant.key].stack
    }
    assert not spilling
    biases = [e.variant.arguments.get("beta_ptr") for e in step(1).events if e.variant]
    assert any(bias and bias.startswith("*fp32") for bias in biases)
