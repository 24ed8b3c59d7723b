"""Implicit-GEMM convolution on haloed channels-last frames: what launches the kernels.

`gather` computes windows of a frame. `scatter` computes a transposed convolution, or a
convolution's input gradient, by phases: each output row h * stride + i has filter rows of its
own, and so becomes a `gather` from the small side. `wgrad` correlates two frames, in splits of
their pixels that are summed in a fixed order. A group of samples may have its own filters:
sample n takes group n // (N / G).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common import runtime
from fastunit.kernels.common.frame import MAX_OFFSET, check_offsets, vector
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.gemm_kernels import conv_gemm_kernel, wgrad_kernel
from fastunit.kernels.conv.phases import phases


class Epilogue(NamedTuple):
    """What happens to a product before it is stored, in this order.

    bias: contiguous [G, K]; border: fp32 values added along the border; then act. `statistics` asks
    for the per-tile (mean, M2, count) that an instance or layer norm merges.
    """

    bias: Tensor | None = None
    border: Tensor | None = None
    act: str = "none"
    slope: float = 0.0
    statistics: bool = False


PLAIN = Epilogue()


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
    x: Tensor, filters: Tensor, windows: Windows, channels: int, epilogue: Epilogue = PLAIN
) -> tuple[Tensor, Tensor | None]:
    """Convolve windows of x, [N, rows, columns, pitch]: y [N, P, Q, K] with P x Q the windows.

    `filters` come from `gather_filters`; `channels` is K. Also returns the statistics' partials
    [N, T, 3, K] fp32, or None.
    """
    return _gemm(x, filters, windows, (windows.rows, windows.columns), channels, 1, 0, epilogue)


def scatter(
    x: Tensor,
    filters: Tensor,
    windows: Windows,
    out: tuple[int, int],
    channels: int,
    up: int,
    crop: int = 0,
    epilogue: Epilogue = PLAIN,
) -> tuple[Tensor, Tensor | None]:
    """Write up x up output pixels for each window of x; `crop` rows and columns are dropped.

    `filters` come from `scatter_filters`. Otherwise as `gather`, with y [N, *out, K].
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
) -> tuple[Tensor, Tensor | None]:
    samples, rows, columns, pitch = x.shape
    groups, phases, taps, run, ld_w = filters.shape
    y = x.new_empty(samples, *out, channels)
    check_offsets(x, y)
    vec = vector(pitch)
    count, precision = windows.rows * windows.columns, _precision()
    tile = tiles.for_windows(x, precision, samples * phases, count, channels, taps, run)
    tiles_m = runtime.cdiv(count, tile.block_m)
    tiles_n = runtime.cdiv(channels, tile.block_n)
    partial = None
    if epilogue.statistics:
        shape = (samples, phases * tiles_m, 3, channels)
        partial = x.new_empty(shape, dtype=torch.float32)
    runtime.launch(
        conv_gemm_kernel, (samples * tiles_m * tiles_n * phases,),
        x, filters, epilogue.bias, epilogue.border, y, partial,
        tiles_m, tiles_n, count, windows.columns, *out, channels, taps, run // vec,
        windows.shift * pitch // vec,
        rows * columns * pitch // vec,
        windows.stride * columns * pitch // vec,
        windows.stride * pitch // vec,
        columns * pitch // vec,
        ld_w, max(1, samples // groups), crop, epilogue.slope,
        ACT=epilogue.act, UP=up, VEC=vec, EVEN_K=run % tile.block_k == 0,
        PRECISION=precision, UPCAST=runtime.INTERPRET,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        **tile.launch_options(),
    )  # fmt: skip
    return y, partial


def wgrad(
    x: Tensor,
    dy: Tensor,
    groups: int,
    taps: tuple[int, int],
    channels: tuple[int, int],
    extent: tuple[int, int],
    stride: int,
) -> Tensor:
    """Correlate windows of x with dy: the gradient of filters, [G, K, C, R, S] in fp32.

    Args:
        x: [N, stride * rows, stride * columns, pitch], haloed.
        dy: [N, rows, columns, pitch], the gradient at the origin and zeros after it, at least
            ceil(R / stride) - 1 rows and columns.
        taps: (R, S); channels: (K of dy, C of x), without their padding.
        extent: rows and columns of the gradient inside dy.
    """
    samples, rows, columns, pitch_dy = dy.shape
    pitch = x.shape[3]
    run, per_group = taps[1] * pitch, samples // groups
    if samples == 0:
        return x.new_zeros(groups, *channels, *taps, dtype=torch.float32)
    pixels = ((per_group - 1) * rows + extent[0] - 1) * columns + extent[1]
    vec, vec_dy, precision = vector(pitch), vector(pitch_dy), _precision()
    largest = MAX_OFFSET // (stride * stride * pitch)
    results = groups * taps[0]
    tile, split = tiles.for_filters(x, precision, results, run, pitch_dy, pixels, largest)
    tiles_l = runtime.cdiv(run, tile.block_m)
    tiles_n = runtime.cdiv(pitch_dy, tile.block_n)
    splits = runtime.cdiv(pixels, split)
    partial = x.new_empty((splits, groups, taps[0], run, pitch_dy), dtype=torch.float32)
    runtime.launch(
        wgrad_kernel, (taps[0] * tiles_l * tiles_n, splits, groups),
        x, dy, partial,
        pixels, per_group * rows * columns, columns, run // vec, taps[0], pitch_dy // vec_dy,
        stride * x.shape[2] * pitch // vec,
        stride * pitch // vec,
        x.shape[2] * pitch // vec,
        split, tiles_l, tiles_n,
        FLAT=stride == 1, EVEN=run % tile.block_m == 0 and pitch_dy % tile.block_n == 0,
        VEC=vec, VEC_DY=vec_dy,
        PRECISION=precision, UPCAST=runtime.INTERPRET,
        BLOCK_M=tile.block_k, BLOCK_L=tile.block_m, BLOCK_N=tile.block_n,
        **tile.launch_options(),
    )  # fmt: skip
    dw = partial[0] if len(partial) == 1 else partial.sum(0)
    dw = dw.view(groups, *taps, pitch, pitch_dy)[..., : channels[1], : channels[0]]
    return dw.permute(0, 4, 3, 1, 2)


def gather_filters(w: Tensor, dtype: torch.dtype, pitch: int) -> Tensor:
    """Lay filters [G, K, C, R, S] out for `gather`: [G, 1, R, S * pitch, ld_w]."""
    return _laid(w.permute(0, 3, 4, 2, 1)[:, None], dtype, pitch).flatten(3, 4)


def scatter_filters(w: Tensor, dtype: torch.dtype, pitch: int, up: int) -> Tensor:
    """Lay filters [G, K, C, R, S] out for `scatter` of K channels into C.

    They are the filters' phases (see phases.py):
    [G, up * up, ceil(R / up), ceil(S / up) * pitch, ld_w].
    """
    sorted_by_phase = phases(w, up).permute(0, 4, 6, 3, 5, 1, 2)
    return _laid(sorted_by_phase, dtype, pitch).flatten(1, 2).flatten(3, 4)


def _laid(w: Tensor, dtype: torch.dtype, pitch: int) -> Tensor:
    """Copy w [..., C, K] into [..., pitch, ld_w] of a dtype, zeros filling up."""
    *shape, c, k = w.shape
    ld_w = tiles.filter_columns(k)
    make = w.new_empty if (c, k) == (pitch, ld_w) else w.new_zeros
    laid = make(*shape, pitch, ld_w, dtype=dtype)
    laid[..., :c, :k] = w
    return laid


def _precision() -> str:
    """Return how float32 is multiplied: as PyTorch's own convolutions are asked to."""
    # Not cudnn.allow_tf32: it raises where RNNs are asked to multiply otherwise.
    # PyTorch puts an object that has `conv` in this module's place.
    conv: Any = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    return "tf32" if conv.fp32_precision == "tf32" else "ieee"
