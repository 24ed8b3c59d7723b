"""What a launch of ours costs: loads that a mask leaves out of whole launches."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest

from bench.model.gpu import H100
from bench.model.kernels import ONCE, SWITCHES, Compiler
from bench.model.recorded import record
from fastunit.config import from_dict
from fastunit.kernels.common import runtime
from tests.support.benchmarks import SMALL

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


@functools.cache
def launches():
    return [event for event in record(from_dict(SMALL), H100).events if event.variant]


def launch(kernel, pointer):
    """Return a launch of a kernel that is given the pointer."""
    found = (event for event in launches() if event.work.name == kernel)
    return next(event for event in found if pointer in event.arguments[""])


def cost(event, **scalars):
    """Return the cost of a launch, with some of its arguments changed."""
    compiler = Compiler(H100)
    compiler.prepare([event])
    changed = {**event.arguments, **scalars}
    return compiler.cost(
        SimpleNamespace(variant=event.variant, work=event.work, grid=event.grid, arguments=changed)
    )


@pytest.mark.parametrize(
    ("kernel", "pointer", "switch"),
    [(kernel, *pair) for kernel, of in SWITCHES.items() for pair in of.items()],
)
def test_what_is_switched_off_does_not_move(kernel, pointer, switch):
    event = launch(kernel, pointer)
    off, on = (cost(event, **{switch: value}) for value in (0, 1))
    more = on.bytes_in - off.bytes_in if pointer == "more_ptr" else on.bytes_out - off.bytes_out
    assert 0 < more <= event.arguments[""][pointer].bytes


@pytest.mark.parametrize(("kernel", "pointer"), sorted(ONCE))
def test_a_border_is_loaded_once(kernel, pointer):
    event = launch(kernel, pointer)
    compiler = Compiler(H100)
    compiler.prepare([event])
    counts = compiler.found[event.variant.key].kernel.count(event.arguments, event.grid)
    whole = event.arguments[""][pointer].bytes
    every = sum(counts.loaded.values()) + sum(counts.stored.values())
    assert counts.loaded[pointer] > whole
    assert cost(event).l2_bytes == every - counts.loaded[pointer] + whole
