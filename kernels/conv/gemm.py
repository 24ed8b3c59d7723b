"""Implicit-GEMM convolution on haloed channels-last frames: what launches the kernels.

`gather` computes windows of a frame. `scatter` computes a transposed convolution, or a
convolution's input gradient, by phases: each output row h * stride + i has filter rows of its
own, and so becomes a `gather` from the small side. `wgrad` correlates two frames, in splits of
their pixels that are summed in a fixed order. A group of samples may have its own filters:
sample n takes group n // (N / G).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common import runtime
from fastunit.kernels.common.frame import MAX_OFFSET, Frame, check_offsets, vector
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.filter_kernels import split_reduce_kernel
from fastunit.kernels.conv.gemm_kernels import conv_gemm_kernel, wgrad_kernel
from fastunit.kernels.norm_act.merges import Merge, merge_of, merge_statistics


class Epilogue(NamedTuple):
    """What happens to a product before it is stored, in this order, and where it is stored.

    bias: contiguous [G, K]; border: what `Ring` adds along the border, [4, N, length, K] fp32; then
    act. With `norm` "in" or "ln" the statistics of what is stored are returned too, `eps` as in
    `norm_act`. A `frame` gets the result with `halo` pixels made from it around it; without one it
    is dense.
    """

    bias: Tensor | None = None
    border: Tensor | None = None
    act: str = "none"
    slope: float = 0.0
    norm: str = "none"
    eps: float = 0.0
    frame: Frame | None = None
    halo: int = 0
    pad_mode: str = "zero"


PLAIN = Epilogue()
Statistics = tuple[Tensor, Tensor]  # mean and rstd, [N, K] fp32
Product = tuple[Tensor, Statistics | None]


class Windows(NamedTuple):
    """Which windows of a frame are convolved: rows x columns of them, `stride` apart.

    `shift` pixels lie between the first pixel of a sample and its first window (it is negative
    where windows begin in the slack or in the zeros that end the sample before).
    """

    rows: int
    columns: int
    stride: int
    shift: int


def gather(
    x: Tensor,
    filters: Tensor,
    windows: Windows,
    channels: int,
    epilogue: Epilogue = PLAIN,
    dtype: torch.dtype | None = None,
) -> Product:
    """Convolve windows of x, [N, rows, columns, pitch]: y [N, P, Q, K] with P x Q the windows.

    `filters` have the layout of a gather (see layouts.py); `channels` is K; y is of x's dtype, or
    of `dtype`. Also returns the statistics, or None. In a frame, where y may have no statistics,
    pixels of the halo are computed as the ones that they copy are.
    """
    out = windows.rows, windows.columns
    return _gemm(x, filters, windows, out, channels, 1, 0, epilogue, dtype)


def scatter(
    x: Tensor,
    filters: Tensor,
    windows: Windows,
    out: tuple[int, int],
    channels: int,
    up: int,
    crop: int = 0,
    epilogue: Epilogue = PLAIN,
) -> Product:
    """Write up x up output pixels for each window of x; `crop` rows and columns are dropped.

    `filters` have the layout of a scatter (see layouts.py). Otherwise as `gather`, with y
    [N, *out, K]; it takes no frame.
    """
    return _gemm(x, filters, windows, out, channels, up, crop, epilogue)


def _gemm(
    x: Tensor,
    filters: Tensor,
    windows: Windows,
    out: tuple[int, int],
    channels: int,
    up: int,
    crop: int,
    epilogue: Epilogue,
    dtype: torch.dtype | None = None,
) -> Product:
    samples, rows, columns, pitch = x.shape
    groups, phases, taps, run, ld_w = filters.shape
    frame = epilogue.frame or Frame(0, *out, channels)
    y = frame.empty(samples, x, dtype)
    check_offsets(x, y)
    vec = vector(pitch)
    across, count = windows.columns, windows.rows * windows.columns
    if up == 1:  # there are as many windows as results
        across, count = frame.width, frame.height * frame.width
    halo = 0 if epilogue.pad_mode == "zero" else epilogue.halo
    precision = _precision()
    if windows.rows == 1 and ld_w % 64 == 0:
        tile = tiles.for_lines(x, run)
    else:
        whole = out == (up * windows.rows, up * windows.columns)
        tile = tiles.for_windows(
            x, precision, samples, count, channels, taps, run,
            phases=phases, whole=whole, border=epilogue.border is not None,
        )  # fmt: skip
    tiles_m = runtime.cdiv(count, tile.block_m)
    tiles_n, together = runtime.cdiv(channels, tile.block_n), max(1, tile.block_n // ld_w)
    partial = mean = rstd = None
    merge = Merge(None, False, 1, 1, 1)
    if epilogue.norm != "none":
        partial, mean, rstd = (
            x.new_empty(samples, *shape, channels, dtype=torch.float32)
            for shape in ((phases * tiles_m, 3), (), ())
        )
        block_c = min(tile.block_n, ld_w)
        merge = merge_of(x, phases * tiles_m, channels, epilogue.norm, block_c, tile.num_warps)
    runtime.launch(
        conv_gemm_kernel, (samples * tiles_m * tiles_n * (phases // together),),
        x, filters, epilogue.bias, epilogue.border, y, partial, mean, rstd, merge.counter,
        tiles_m, tiles_n, count, across, *out, channels,
        frame.pitch, frame.lead, halo, int(epilogue.pad_mode == "reflect"),
        taps, run // vec,
        windows.shift * pitch // vec,
        rows * columns * pitch // vec,
        windows.stride * columns * pitch // vec,
        windows.stride * pitch // vec,
        columns * pitch // vec,
        ld_w, max(1, samples // groups), crop, epilogue.slope, epilogue.eps, int(merge.last),
        NORM=epilogue.norm, **merge.constants(), ACT=epilogue.act, UP=up, PHASES=together, VEC=vec,
        EVEN_K=run % tile.block_k == 0, PRECISION=precision, UPCAST=runtime.INTERPRET,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        **tile.launch_options(),
    )  # fmt: skip
    if partial is None or mean is None or rstd is None:
        return y, None
    if not merge.last:
        merge_statistics(partial, mean, rstd, epilogue.norm, epilogue.eps)
    return y, (mean, rstd)


def wgrad(
    x: Tensor,
    dy: Tensor,
    dw: Tensor,
    extent: tuple[int, int],
    stride: int,
    *,
    combined: bool = False,
    flipped: bool = False,
    add: bool = False,
) -> None:
    """Correlate windows of x with dy, and write the gradient of filters.

    Args:
        x: [N, stride * rows, stride * columns, pitch], haloed.
        dy: [N, rows, columns, pitch], the gradient at the origin and zeros after it, at least
            ceil(R / stride) - 1 rows and columns.
        dw: where to: [G, K, C, R, S] of any strides and dtype, with the channels of dy and x.
        extent: rows and columns of the gradient inside dy.
        stride: of the convolution.
        combined: the product is that of upsampling's combined filters, which have R + 1 by S + 1
            taps; dw gets its share of their gradient (`phases.combined_filters_backward`).
        flipped: dw gets the taps in reverse.
        add: to what dw holds.
    """
    if len(x) == 0:
        if not add:
            dw.zero_()
        return
    if not combined:  # one launch: the last program of a tile adds its splits up
        _correlate(x, dy, len(dw), _pair(dw.shape[3:]), extent, stride, dw, flipped, add)
        return
    partial = wgrad_splits(x, dy, len(dw), (dw.shape[3] + 1, dw.shape[4] + 1), extent, stride)
    groups, channels_dy, channels, *taps = dw.shape
    block_c, block_k = 16, 64
    tiles_c, tiles_k = runtime.cdiv(channels, block_c), runtime.cdiv(channels_dy, block_k)
    runtime.launch(
        split_reduce_kernel, (tiles_c * tiles_k, taps[0] * taps[1], groups),
        partial, dw, len(partial), partial.stride(0), channels, channels_dy, *taps,
        x.shape[3], dy.shape[3], *dw.stride(), tiles_k, int(add),
        BLOCK_C=block_c, BLOCK_K=block_k,
    )  # fmt: skip


def wgrad_splits(
    x: Tensor,
    dy: Tensor,
    groups: int,
    taps: tuple[int, int],
    extent: tuple[int, int],
    stride: int,
) -> Tensor:
    """Return the splits whose sum `wgrad` writes: [splits, G, R, S * pitch, pitch of dy] fp32.

    The arguments are those of `wgrad`, with at least one sample.
    """
    return _correlate(x, dy, groups, taps, extent, stride, None, False, False)


def _correlate(
    x: Tensor,
    dy: Tensor,
    groups: int,
    taps: tuple[int, int],
    extent: tuple[int, int],
    stride: int,
    dw: Tensor | None,
    flipped: bool,
    add: bool,
) -> Tensor:
    """Return what `wgrad_splits` does, and write their sum to dw, or add it."""
    samples, rows, columns, pitch_dy = dy.shape
    pitch = x.shape[3]
    run, per_group = taps[1] * pitch, samples // groups
    pixels = ((per_group - 1) * rows + extent[0] - 1) * columns + extent[1]
    vec, vec_dy, precision = vector(pitch), vector(pitch_dy), _precision()
    largest = MAX_OFFSET // (stride * stride * pitch)
    rows_dw = taps[0] * run
    tile, split = tiles.for_filters(x, precision, groups, rows_dw, pitch_dy, pixels, largest)
    tiles_n = runtime.cdiv(pitch_dy, tile.block_n)
    splits = runtime.cdiv(pixels, split)
    partial = x.new_empty((splits, groups, taps[0], run, pitch_dy), dtype=torch.float32)
    programs = runtime.cdiv(rows_dw, tile.block_m) * tiles_n
    counter = runtime.counters(programs * groups, x.device)
    result, channels, strides = partial, (0, 0), (0,) * 5
    if dw is not None:
        result, channels, strides = dw, dw.shape[1:3], dw.stride()
        if flipped:
            result, strides = dw[..., -1:, -1:], (*strides[:3], -strides[3], -strides[4])
    runtime.launch(
        wgrad_kernel, (programs, splits, groups),
        x, dy, partial, result, counter,
        pixels, per_group * rows * columns, columns, run // vec, *taps, pitch_dy // vec_dy,
        stride * x.shape[2] * pitch // vec,
        stride * pitch // vec,
        x.shape[2] * pitch // vec,
        split, tiles_n, channels[1], channels[0], *strides, int(dw is not None), int(add),
        FLAT=stride == 1, EVEN=rows_dw % tile.block_m == 0 and pitch_dy % tile.block_n == 0,
        VEC=vec, VEC_DY=vec_dy,
        PRECISION=precision, UPCAST=runtime.INTERPRET,
        BLOCK_M=tile.block_k, BLOCK_L=tile.block_m, BLOCK_N=tile.block_n, SUM_L=tile.sum_rows(),
        **tile.launch_options(),
    )  # fmt: skip
    return partial


def _pair(taps: Sequence[int]) -> tuple[int, int]:
    return taps[0], taps[1]


def _precision() -> str:
    """Return how float32 is multiplied: as PyTorch's own convolutions are asked to."""
    # Not cudnn.allow_tf32: it raises where RNNs are asked to multiply otherwise.
    # PyTorch puts an object that has `conv` in this module's place.
    conv: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    return "tf32" if conv.fp32_precision == "tf32" else "ieee"
