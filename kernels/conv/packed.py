"""The filters of a network in the layouts that the kernels read, written all at once.

Casts, layouts and phases of filters take several launches a block where they are made for each
call. Who knows when the weights change, as a training step does, makes them for all blocks at once
and hands each block its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common import eager, runtime
from fastunit.kernels.conv.filter_kernels import pack_kernel
from fastunit.kernels.conv.layouts import Filters, Layout, layouts
from fastunit.kernels.conv.phases import phase_filters

# What `pack_kernel` is told of a filter, and of each of its two layouts.
FILTER = (
    "first program", "source", "D0", "D1", "stride of D0", "stride of D1", "stride of R",
    "stride of S", "R", "S", "combined",
)  # fmt: skip
LAYOUT = "target", "up", "rows", "columns", "pitch", "ld", "by columns"
ALIGNMENT = 128  # values between blocks; the kernels' loads are at most 16 bytes wide
UNIT = 16  # of targets and of ld, in values
TILE = 64  # of channels, both ways


class Block(NamedTuple):
    """A block's filters: [K, C, R, S], or [C, K, R, S] of a transpose, one for each group."""

    weights: tuple[Tensor, ...]
    kind: str  # one of plan.Kind
    stride: int


class Job(NamedTuple):
    """A filter, and both of its layouts with where in the buffer they begin."""

    w: Tensor
    places: tuple[tuple[Layout, int], ...]


class PackedFilters:
    """The filters of blocks in one buffer, in the layouts that the Triton kernels read.

    Args:
        blocks: they keep their shapes, strides, dtypes and device; where they lie may change.
        dtype: of the layouts, as of the images.

    Attributes:
        filters: for each block, views of the buffer, which `write` fills.
    """

    def __init__(self, blocks: Sequence[Block], dtype: torch.dtype) -> None:
        self._described, self._jobs = _described(blocks, dtype), list[Job]()
        shapes, size = [], 0
        for weights, kind, stride in blocks:
            starts = []
            pair = layouts(kind, stride, weights[0].shape)
            for layout in pair:
                count, rows, columns, pitch, ld = layout.shape(weights[0])
                each = count * rows * columns * pitch * ld
                shapes.append((size, (len(weights), count, rows, columns * pitch, ld)))
                starts.append([size + i * each for i in range(len(weights))])
                size += -(-len(weights) * each // ALIGNMENT) * ALIGNMENT
            for w, *places in zip(weights, *starts, strict=True):
                self._jobs.append(Job(w, tuple(zip(pair, places, strict=True))))
        # The kernel leaves the zeros that fill the layouts up.
        self.buffer = blocks[0].weights[0].new_zeros(size, dtype=dtype, requires_grad=False)
        views = [_view(self.buffer, start, shape) for start, shape in shapes]
        self.filters = [
            Filters(("triton", kind, stride), fprop, dgrad)
            for (_, kind, stride), fprop, dgrad in zip(blocks, views[::2], views[1::2], strict=True)
        ]
        self._tables: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] = {}
        self._addresses: list[int] = []

    def is_of(self, blocks: Sequence[Block], dtype: torch.dtype) -> bool:
        """Return whether these are the constructor's arguments, of the shapes they had."""
        return _described(blocks, dtype) == self._described

    @torch.no_grad()
    def write(self) -> None:
        """Lay out the filters as they are now: one launch, or one for each of their dtypes."""
        weights = [job.w for job in self._jobs]
        if not runtime.recording() and not eager.only_autograd(*weights):
            self._write_aten()
            return
        addresses = [_address(w) for w in weights]
        if addresses != self._addresses:
            self._addresses = addresses
            of_dtypes = {w.dtype: w for w in weights}.values()
            self._tables = {base.dtype: (base, *self._table(base)) for base in of_dtypes}
        for base, jobs, owner in self._tables.values():
            runtime.launch(
                pack_kernel, (len(owner),), base, self.buffer, jobs, owner,
                OF_FILTER=len(FILTER), OF_LAYOUT=len(LAYOUT), UNIT=UNIT, BLOCK=TILE, num_warps=8,
            )  # fmt: skip

    def _write_aten(self) -> None:
        for w, places in self._jobs:
            for layout, start in places:
                laid = layout.make(w[None], self.buffer.dtype)
                self.buffer[start : start + laid.numel()].copy_(laid.view(-1))

    def _table(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return the jobs of the filters of base's dtype, and the job of each program."""
        jobs, counts, first = [], [], 0
        for w, places in self._jobs:
            if w.dtype != base.dtype:
                continue
            source = (_address(w) - _address(base)) // w.element_size()
            job = [first, source, *w.shape[:2], *w.stride(), *w.shape[2:]]
            job.append(int(places[0][0].combined))
            taps = math.prod(n + places[0][0].combined for n in w.shape[2:])
            for layout, start in sorted(places, key=lambda place: -place[0].inner):
                _, rows, columns, pitch, ld = layout.shape(w)
                columns = w.shape[3] if layout.by_columns else columns
                job += [start // UNIT, layout.up, rows, columns, pitch, ld // UNIT]
                job.append(int(layout.by_columns))
            jobs.append(job)
            counts.append(taps * math.prod(runtime.cdiv(n, TILE) for n in w.shape[:2]))
            first += counts[-1]
        owner = [job for job, count in enumerate(counts) for _ in range(count)]
        tables = torch.tensor(jobs), torch.tensor(owner, dtype=torch.int32)
        return tables[0].to(base.device), tables[1].to(base.device)


def _address(w: Tensor) -> int:
    return 0 if runtime.recording() else w.data_ptr()  # what is recorded may have no memory


def _described(blocks: Sequence[Block], dtype: torch.dtype) -> list[object]:
    weights = [w for block in blocks for w in block.weights]
    tensors = [(id(w), w.shape, w.stride(), w.dtype, w.device) for w in weights]
    return [dtype, *tensors, *(block[1:] for block in blocks)]


def _view(buffer: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    return buffer[start:].as_strided(shape, torch.empty(shape, device="meta").stride())


@torch.no_grad()
def aten_filters(blocks: Iterable[Block], dtype: torch.dtype) -> Iterator[Filters | None]:
    """Return the filters as PyTorch's kernels read them: cast, upsampling's by phases.

    None where they are read as they are.
    """
    for weights, kind, stride in blocks:
        if kind == "upsample":
            made = [phase_filters(w, dtype) for w in weights]
        elif weights[0].dtype != dtype:
            made = [w.to(dtype) for w in weights]
        else:
            yield None
            continue
        one = made[0][None] if len(made) == 1 else torch.stack(made)
        yield Filters(("aten", kind, stride), one, one)
