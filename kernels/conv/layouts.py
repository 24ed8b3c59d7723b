"""The layouts in which the matrix kernels read filters, and their ATen twin.

A block reads its filters in two layouts: one for the forward product, one for its input's
gradient. Each is a matrix per phase and filter row, `[phases, rows, columns * pitch, ld]`: the
channels that are summed over lie along `pitch`, those of the result along `ld`, zeros fill both up.

A *gather* has one phase, the taps in order. A *scatter* by `up` has up * up phases, each with the
taps that reach one pixel of each up x up square, in descending order (see phases.py). *By columns*
(see columns.py) the columns of taps lie along `ld`, tap by tap, in place of `columns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common.frame import pitch
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.phases import combined_filters, phases

# By columns: at most so many channels of the result, and so many with the columns, one tile.
MOST_CHANNELS, MOST_COLUMNS = 4, 64


class Direct(NamedTuple):
    """A block's parameters whose gradients are added to buffers, not handed to autograd.

    The tuples are of the filters, bias, gamma and beta, stacked where the block has groups; None
    where it has none. Gradients are added where `parameter`, one of those stacked, requires them.
    Stacked filters that are read in their layouts alone have the right shape and any values.
    `first_use` returns whether the filters' gradient is to be written, not added, and counts as a
    use.
    """

    parameter: Tensor
    values: tuple[Tensor | None, ...]
    gradients: tuple[Tensor | None, ...]
    first_use: Callable[[], bool]


class Filters(NamedTuple):
    """A block's filters as its kernels read them; a leading dimension of groups in both."""

    of: tuple[str, str, int]  # what can read them: implementation, kind and stride of the block
    fprop: Tensor  # for the forward product
    dgrad: Tensor  # for the input's gradient
    direct: Direct | None = None


class Layout(NamedTuple):
    """How filters [G, D0, D1, R, S] are laid out.

    inner: the axis, 0 or 1 of (D0, D1), whose channels lie along `pitch`; the other's along `ld`.
    up: 0 for a gather, the stride of a scatter.
    combined: the taps are those of upsampling's combined filters, R + 1 by S + 1.
    by_columns: of a gather or of a scatter by 1.
    """

    inner: int
    up: int
    combined: bool = False
    by_columns: bool = False

    def shape(self, w: Tensor) -> tuple[int, int, int, int, int]:
        """Return (phases, rows, columns, pitch, ld) for w [..., D0, D1, R, S]."""
        channels, (rows, columns) = w.shape[-4:-2], (n + self.combined for n in w.shape[-2:])
        up = max(1, self.up)
        inner, outer = channels[self.inner], channels[1 - self.inner]
        if self.by_columns:
            return 1, rows, 1, pitch(inner), tiles.filter_columns(columns * outer)
        sizes = -(-rows // up), -(-columns // up), pitch(inner), tiles.filter_columns(outer)
        return up * up, *sizes

    def make(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """Return [G, phases, rows, columns * pitch, ld] for filters w [G, D0, D1, R, S]."""
        count, rows, columns, wide, ld = self.shape(w)
        inner = self.inner
        if self.combined:  # which swaps D0 and D1
            w, inner = combined_filters(w), 1 - inner
        if self.up:
            w = phases(w, self.up).permute(0, 4, 6, 3, 5, 1, 2).flatten(1, 2)
        else:
            w = w.permute(0, 3, 4, 1, 2)[:, None]
        w = w if inner == 0 else w.transpose(-1, -2)
        if self.by_columns:
            w = w.transpose(3, 4).flatten(4, 5)[:, :, :, None]
        channels = w.shape[-2:]
        full = tuple(channels) == (wide, ld)
        make = w.new_empty if full else w.new_zeros
        laid = make(len(w), count, rows, columns, wide, ld, dtype=dtype)
        laid[..., : channels[0], : channels[1]] = w
        return laid.flatten(3, 4)


def layouts(kind: str, stride: int, filters: Sequence[int]) -> tuple[Layout, Layout]:
    """Return the layouts for the forward product and for the input's gradient of a block.

    `filters` is the shape of its filters, [..., K, C, R, S], or a transpose's [..., C, K, R, S].
    """
    if kind == "conv":
        k, c, _, columns = filters[-4:]
        few = [stride == 1 and _few(*each, columns) for each in ((c, k), (k, c))]
        return Layout(1, 0, by_columns=few[0]), Layout(0, stride, by_columns=few[1])
    if kind == "transpose":  # w [C, K, R, S]
        return Layout(0, stride), Layout(1, 0)
    return Layout(1, 2, combined=True), Layout(0, 0, combined=True)


def _few(channels: int, results: int, columns: int) -> bool:
    """Return whether a product into so few channels clearly reads less by columns."""
    narrow = results <= MOST_CHANNELS and columns * results <= MOST_COLUMNS
    return narrow and columns > 2 and channels >= 16
