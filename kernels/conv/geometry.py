"""The frames of a convolutional block, and its product and gradients between them.

In the two frames of a block coarse pixel (h, w) goes with the filter's taps on the fine pixels
from (stride * h, stride * w) on; the fine frame has stride times as many rows and columns. A
convolution reads windows of the fine frame, a transposed convolution writes to them. Zeros end
the coarse frame, so that no window leaves the fine one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastunit.kernels.common.eager import cached
from fastunit.kernels.common.frame import Frame, pitch
from fastunit.kernels.conv import columns as by_columns
from fastunit.kernels.conv import gemm
from fastunit.kernels.conv.layouts import layouts
from fastunit.kernels.conv.plan import Plan


def _pair(lengths: Iterable[int]) -> tuple[int, int]:
    """Return the values for rows and for columns."""
    rows, columns = lengths
    return rows, columns


class Conv:
    """A strided convolution with filters [G, K, C, R, S], from the fine frame to the coarse."""

    def __init__(self, plan: Plan, x_shape: Sequence[int], filters: Sequence[int]) -> None:
        self.channels, self.size = x_shape[1], _pair(x_shape[2:])
        self.channels_out, self.taps = filters[-4], _pair(filters[-2:])
        fprop, dgrad = layouts(plan.kind, plan.stride, filters)
        self._by_columns, self._dgrad_by_columns = fprop.by_columns, dgrad.by_columns
        self.writes_frames = not self._by_columns
        self.step, self.halo, self.pad_mode = plan.stride, plan.padding, plan.pad_mode
        self.out = _pair(map(plan.size_out, self.size, self.taps))
        self.padded = _pair(length + 2 * self.halo for length in self.size)
        rows, columns = (-(-length // self.step) for length in self.padded)
        reach = [-(-taps // self.step) for taps in self.taps]
        self._slack = (reach[0] - 1) * columns + reach[1] - 1
        self.x_frame = Frame(self.halo, self.step * rows, self.step * columns, pitch(self.channels))
        self.dy_frame = Frame(0, rows, columns, pitch(self.channels_out), self._slack)

    def fprop(self, xh: Tensor, filters: Tensor, epilogue: gemm.Epilogue) -> gemm.Product:
        windows = gemm.Windows(*self.out, self.step, 0)
        if self._by_columns:
            k, columns = self.channels_out, self.taps[1]
            return by_columns.product(xh, filters, windows, columns, k, epilogue), None
        return gemm.gather(xh, filters, windows, self.channels_out, epilogue)

    def dgrad(self, dy: Tensor, filters: Tensor) -> Tensor:
        """Return the gradient of the haloed input, [N, H + 2 * halo, W + 2 * halo, C]."""
        windows = gemm.Windows(dy.shape[1], dy.shape[2], 1, -self._slack)
        if self._dgrad_by_columns:
            return by_columns.product(dy, filters, windows, self.taps[1], self.channels)
        dxh, _ = gemm.scatter(dy, filters, windows, self.padded, self.channels, self.step)
        return dxh

    def wgrad(self, xh: Tensor, dy: Tensor, dw: Tensor, add: bool) -> None:
        """Write the gradient of w to dw, of w's shape, or add it."""
        if self._by_columns:
            by_columns.wgrad(xh, dy, dw, add=add)
        else:
            gemm.wgrad(xh, dy, dw, self.out, self.step, add=add)


class Transpose:
    """A transposed convolution with filters [G, C, K, R, R], from the coarse frame to the fine.

    Output pixel o is pixel o + crop of the fine frame; input pixel h is h + lead of the coarse.
    """

    writes_frames = False

    def __init__(self, plan: Plan, x_shape: Sequence[int], filters: Sequence[int]) -> None:
        self.channels, self.size = x_shape[1], _pair(x_shape[2:])
        self.channels_out, self.step = plan.channels_out(filters), plan.step
        # Upsampling replicates where the large image reflects; see phases.py.
        self.pad_mode, taps = "zero" if plan.pad_mode == "zero" else "replicate", filters[-2]
        self.out = _pair(plan.size_out(length, taps) for length in self.size)
        padding, self.halo = plan.padding, 0
        if plan.kind == "upsample":
            # Large pixel j is small pixel j // 2: a halo of p there is one of (p + 1) // 2 here.
            taps, padding, self.halo = taps + 1, taps - 1 - padding, (padding + 1) // 2
        self._reach = -(-taps // self.step)
        self._lead = max(self.halo, self._reach - 1 - padding // self.step)
        self._crop = self.step * self._lead + padding
        self._combined = plan.kind == "upsample"
        self._end = _pair(self._lead + length + self.halo for length in self.size)
        rows, columns = (
            max(end + self._reach - 1, -(-(self._crop + out) // self.step))
            for end, out in zip(self._end, self.out, strict=True)
        )
        self.x_frame = Frame(self._lead, rows, columns, pitch(self.channels))
        fine = self.step * rows, self.step * columns
        self.dy_frame = Frame(self._crop, *fine, pitch(self.channels_out))

    def fprop(self, xh: Tensor, filters: Tensor, epilogue: gemm.Epilogue) -> gemm.Product:
        drop = self._crop % self.step
        first = self._crop // self.step - (self._reach - 1)
        count = _pair(-(-(drop + out) // self.step) for out in self.out)
        windows = gemm.Windows(*count, 1, first * (self.x_frame.width + 1))
        return gemm.scatter(
            xh, filters, windows, self.out, self.channels_out, self.step, drop, epilogue
        )

    def dgrad(self, dy: Tensor, filters: Tensor) -> Tensor:
        """Return the gradient of the haloed input, [N, H + 2 * halo, W + 2 * halo, C]."""
        count = _pair(length + 2 * self.halo for length in self.size)
        first = self.step * (self._lead - self.halo)
        windows = gemm.Windows(*count, self.step, first * (self.dy_frame.width + 1))
        dxh, _ = gemm.gather(dy, filters, windows, self.channels)
        return dxh

    def wgrad(self, xh: Tensor, dy: Tensor, dw: Tensor, add: bool) -> None:
        """Write the gradient of w to dw, of w's shape, or add it."""
        dw = dw.transpose(1, 2) if self._combined else dw
        gemm.wgrad(dy, xh, dw, self._end, self.step, combined=self._combined, add=add)


@cached
def convolution(plan: Plan, x_shape: Sequence[int], filters: Sequence[int]) -> Conv | Transpose:
    """Return the geometry for filters of a shape [..., K, C, R, S], or a transpose's [..., C, K].

    Upsampling's is that of its combined filters.
    """
    return (Conv if plan.kind == "conv" else Transpose)(plan, x_shape, filters)


def is_frame(x: Tensor, frame: Frame) -> bool:
    """Return whether x [N, C, H, W] itself can serve as its haloed buffer."""
    rows, columns = x.shape[2:]
    fits = frame == Frame(0, rows, columns, x.shape[1])
    return fits and x.is_contiguous(memory_format=torch.channels_last)
