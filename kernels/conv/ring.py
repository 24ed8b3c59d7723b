"""The border correction of reflect-padded upsampling on Triton kernels; see phases.py.

Along each side of the result a line of differences is convolved with the filters' outer taps. The
four sides are groups of one matrix product, whose result the epilogue of the main product adds.
A difference is rounded to the image's dtype, where eager PyTorch's border has none: in bfloat16
that error is a tenth of that which rounding filters and result makes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastunit.kernels.common.frame import pitch, vector
from fastunit.kernels.common.runtime import cdiv, launch, next_power_of_2
from fastunit.kernels.conv import gemm, tiles
from fastunit.kernels.conv.ring_kernels import (
    lines_backward_kernel,
    lines_kernel,
    taps_backward_kernel,
    taps_kernel,
)

SIDES = 4


class Ring:
    """The correction for an image x and filters w [G, K, C, T, T]: sizes, products, gradients."""

    def __init__(self, size: tuple[int, int], out: tuple[int, int], w: Tensor) -> None:
        """Take the sizes of x and of the result."""
        self._size, self._out = size, out
        self._channels_out, self._channels, self._taps = w.shape[1], w.shape[2], w.shape[3]
        self._width = max(out)  # results along the longer sides
        self._length = self._width + self._taps - 1
        self._pitch, self._pitch_dy = pitch(self._channels), pitch(self._channels_out)

    def fprop(self, x: Tensor, w: Tensor) -> Tensor:
        """Return what to add along the border, [4, N, longer side, K] fp32.

        x is [N, H, W, C] with channel stride 1. At a corner two sides' values are added.
        """
        lines, _ = self._lines(x, None)
        windows = gemm.Windows(1, self._width, 1, 0)
        taps, _ = self._filters(w, x.dtype)
        y, _ = gemm.gather(lines, taps, windows, self._channels_out, dtype=torch.float32)
        return y.view(SIDES, len(x), self._width, self._channels_out)

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, dx: Tensor | None, dw: Tensor | None
    ) -> None:
        """Add the correction's share to the gradients of x and w, in place.

        Args:
            dy: gradient of the whole result, [N, P, Q, K] with channel stride 1.
            x: as in `fprop`.
            w: the filters.
            dx: [N, H, W, C] with channel stride 1, or None.
            dw: of w's shape, any strides, or None.
        """
        if len(x) == 0:
            return
        lines, edges = self._lines(x, dy)
        if dx is not None:
            self._add_to_image(edges, w, dx)
        if dw is not None:
            self._add_to_filters(lines, edges, dw)

    def _lines(self, x: Tensor, dy: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the lines of x and those of dy, both [4 * N, 1, length, pitch], in one launch.

        Zeros precede the lines of dy and end each, so that windows may overlap its ends. Without
        dy they are empty.
        """
        samples, slack = len(x), self._taps - 1
        shape = SIDES * samples, 1, self._length
        lines = x.new_empty(*shape, self._pitch)
        pixels = math.prod(shape) + slack if dy is not None else 0
        edges = x.new_empty(pixels, self._pitch_dy)[slack:]
        block_c = min(64, next_power_of_2(self._pitch))
        block_m = max(2048 // block_c, next_power_of_2(max(slack, 1)))
        tiles_m, tiles_x = cdiv(self._length, block_m), cdiv(self._pitch, block_c)
        tiles_dy = 0 if dy is None else cdiv(self._pitch_dy, block_c)
        vec, vec_dy = vector(self._pitch), vector(self._pitch_dy)
        given, written = (x, lines) if dy is None else (dy, edges)  # not read without dy
        launch(
            lines_kernel, (SIDES * samples * tiles_m * (tiles_x + tiles_dy),),
            x, given, lines, written, samples,
            *self._size, self._channels, *x.stride()[:3],
            *self._out, self._channels_out, *given.stride()[:3],
            self._length, self._pitch // vec, self._pitch_dy // vec_dy, slack,
            tiles_m, tiles_x, tiles_dy,
            VEC=vec, VEC_DY=vec_dy, BLOCK_M=block_m, BLOCK_C=block_c,
        )  # fmt: skip
        return lines, edges if dy is None else edges.view(*shape, self._pitch_dy)

    def _add_to_image(self, edges: Tensor, w: Tensor, dx: Tensor) -> None:
        _, taps = self._filters(w, edges.dtype)
        windows = gemm.Windows(1, self._length, 1, 1 - self._taps)
        d_lines, _ = gemm.gather(edges, taps, windows, self._channels, dtype=torch.float32)
        samples, (rows, columns) = len(dx), self._size
        pixels = rows * columns - max(rows - 4, 0) * max(columns - 4, 0)
        block_c = min(64, next_power_of_2(max(self._channels, 4)))
        block_m = 1024 // block_c
        tiles_m, tiles_c = cdiv(pixels, block_m), cdiv(self._channels, block_c)
        launch(
            lines_backward_kernel, (samples * tiles_m * tiles_c,),
            d_lines, dx, samples, rows, columns, self._channels, *dx.stride()[:3], self._length,
            tiles_m, tiles_c,
            BLOCK_M=block_m, BLOCK_C=block_c,
        )  # fmt: skip

    def _add_to_filters(self, lines: Tensor, edges: Tensor, dw: Tensor) -> None:
        groups, k, c, taps = dw.shape[:4]
        extent = 1, self._width
        partial = gemm.wgrad_splits(lines, edges, SIDES * groups, (1, taps), extent, 1)
        grid, blocks = _tap_tiles(groups * taps * taps, c, k)
        launch(
            taps_backward_kernel, grid[:1],
            partial, dw, len(partial), groups, k, c, taps, *dw.stride(),
            self._pitch, self._pitch_dy, *grid[1:], **blocks,
        )  # fmt: skip

    def _filters(self, w: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the outer taps as filters of `gemm.gather`, for the lines and for the edges."""
        flat = outer_taps(w, dtype)
        shape = SIDES * len(w), 1, 1
        ld_k, ld_c = tiles.filter_columns(self._channels_out), tiles.filter_columns(self._channels)
        taps, dgrad = self._taps * self._pitch, self._taps * self._pitch_dy
        size = SIDES * len(w) * taps * ld_k
        return flat[:size].view(*shape, taps, ld_k), flat[size:].view(*shape, dgrad, ld_c)


def outer_taps(w: Tensor, dtype: torch.dtype) -> Tensor:
    """Return both layouts of `Ring`'s filters, one after the other, in one launch."""
    groups, k, c, taps = w.shape[:4]
    rows = pitch(c), tiles.filter_columns(k)  # channels in, channels out of each product
    rows_dgrad = pitch(k), tiles.filter_columns(c)
    sizes = [SIDES * groups * taps * math.prod(shape) for shape in (rows, rows_dgrad)]
    flat = w.new_empty(sum(sizes), dtype=dtype)
    grid, blocks = _tap_tiles(
        SIDES * groups * taps, max(rows[0], rows_dgrad[1]), max(rows[1], rows_dgrad[0])
    )
    launch(
        taps_kernel, grid[:1],
        w, flat, flat[sizes[0] :], groups, k, c, taps, *w.stride(), *rows, *rows_dgrad,
        *grid[1:], **blocks,
    )  # fmt: skip
    return flat


def _tap_tiles(taps: int, c: int, k: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Return programs and tiles along channels in and out, and the tile's sizes."""
    block_c, block_k = (min(most, next_power_of_2(count)) for most, count in ((16, c), (32, k)))
    tiles_c, tiles_k = cdiv(c, block_c), cdiv(k, block_k)
    return (taps * tiles_c * tiles_k, tiles_c, tiles_k), {"BLOCK_C": block_c, "BLOCK_K": block_k}
