"""Branches of a captured CUDA graph: kernels that need not wait for each other run side by side.

With FASTUNIT_BRANCHES=1, read once at import, a training step forks while it is captured: a block
computes its filters' gradient beside its input's (`beside`), and each scale of the discriminators
has a stream of its own (`branch`), on which autograd runs its backward pass as well. Outside a
capture nothing forks. Off by default, since no GPU has measured it.

Freed memory is used again by the stream that allocated it, in that stream's order. Why nothing is
overwritten that another stream still reads or writes:

- What `beside` runs reads and writes is allocated before the fork and kept by the caller until the
  join. What it allocates (sums of splits) it alone uses, on its stream.
- The images that a scale reads are recorded on its stream (`Tensor.record_stream`), and its scores
  on the stream that joins: a capture does not use such memory again. Both are small. All else of a
  scale is allocated, kept for backward and freed on its own stream.
- Gradients that cross streams are ordered and recorded by autograd.
- Parameters' gradients lie in buffers that outlive the step. A scale has its parameters to itself
  (`GroupedExecution.run_scales` sees to it): its stream keeps the order of a filter's uses, of
  which the first writes and others add. The step's stream sets buffers to zero before the fork,
  and reads them after the end of `joined`. So it is with laid-out filters, which are read alone.
- Counters of launches: those of each stream lie apart (`lane`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastunit.kernels.common.environment import is_on

ON = is_on("FASTUNIT_BRANCHES")
LANES = 16  # streams: the step's, those of seven scales, and one beside each

_HERE = nullcontext(nullcontext())
_lanes: dict[Any, int] = {}  # of streams of branches: even ones of scales, odd ones beside them
_forked: dict[Any, None] | None = None  # streams of scales, inside `joined`


def beside(
    x: Tensor, wanted: bool = True
) -> AbstractContextManager[AbstractContextManager[object]]:
    """Fork a branch, to be joined at the end of the block, if it is `wanted` and x is captured.

    The block gets a context in which kernels are launched on the branch.
    """
    return _beside(x.device) if wanted and ON and _captures(x) else _HERE


@contextmanager
def _beside(device: torch.device) -> Iterator[AbstractContextManager[object]]:
    here = torch.cuda.current_stream(device)
    stream = _stream(device, lane(device) | 1)
    stream.wait_stream(here)
    try:
        yield torch.cuda.stream(stream)
    finally:
        here.wait_stream(stream)


def joined() -> AbstractContextManager[object]:
    """Let scales fork inside the block; at its end all that ran on their streams is joined."""
    return _joined() if ON else _HERE


@contextmanager
def _joined() -> Iterator[None]:
    global _forked
    _forked = {}
    try:
        yield
    finally:
        join()
        _forked = None


def may_fork(x: Tensor, scales: int) -> bool:
    """Return whether so many scales get branches now, to read images x."""
    return _forked is not None and 1 < scales < LANES // 2 and _captures(x)


@contextmanager
def branch(scale: int, reads: Iterable[Tensor]) -> Iterator[None]:
    """Launch what is inside the block on a scale's stream, which reads these tensors."""
    assert _forked is not None  # else nothing would join what autograd runs
    device = next(iter(reads)).device
    stream = _stream(device, 2 * scale + 2)
    stream.wait_stream(torch.cuda.current_stream(device))
    _forked[stream] = None
    for tensor in reads:
        tensor.record_stream(stream)
    with torch.cuda.stream(stream):
        yield


def join(results: Iterable[Tensor] = ()) -> None:
    """Let the current stream wait for all scales, and read what they returned."""
    for stream in _forked or ():
        torch.cuda.current_stream(stream.device).wait_stream(stream)
    for tensor in results:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def lane(device: torch.device) -> int:
    """Return the current stream's number below LANES; 0: it is none of a branch."""
    return _lanes.get(torch.cuda.current_stream(device), 0)


@functools.cache
def _stream(device: torch.device, number: int) -> Any:
    stream = torch.cuda.Stream(device)
    _lanes[stream] = number
    return stream


def _captures(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
