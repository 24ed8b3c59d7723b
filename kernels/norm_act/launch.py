"""Launchers of a block's options on channels-last images: tiles, buffers and arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastunit.kernels.common.frame import Frame, check_offsets, vector
from fastunit.kernels.common.runtime import cdiv, launch, next_power_of_2
from fastunit.kernels.norm_act import backward_kernels
from fastunit.kernels.norm_act import forward_kernels as kernels
from fastunit.kernels.norm_act.aten import NormActGradients, NormActOptions
from fastunit.kernels.norm_act.merges import (
    merge_of,
    merge_statistics,
    merge_sums,
    row_arguments,
)
from fastunit.kernels.norm_act.rows import Rows


@dataclass(frozen=True)
class NormActConfig:
    """Tile of the passes over pixels: 32 values, four 16-byte accesses at bf16, a thread."""

    block_m: int
    block_c: int
    num_warps: int = 8

    @staticmethod
    def of(channels: int, element_size: int = 2) -> NormActConfig:
        # 64 channels of bf16 fill a 128-byte line; more would repeat the parameters in more
        # registers, fewer pixels would write more partial sums.
        block_c = min(64, next_power_of_2(max(channels, 4)))
        # 8192 values of four bytes spill in the sums of backward (sm_100). Small images take the
        # same tile, most of it masked, so that they need no variants of their own.
        block_m = 16384 // element_size // block_c
        return NormActConfig(block_m, block_c, 8 if block_m * block_c > 4096 else 4)

    def tiles(self, pixels: int, channels: int) -> tuple[int, int]:
        """Return the number of tiles along a sample's pixels and along its channels."""
        return cdiv(pixels, self.block_m), cdiv(channels, self.block_c)

    def launch_options(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_C": self.block_c, "num_warps": self.num_warps}


def norm_act_triton(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
    statistics: tuple[Tensor, Tensor] | None = None,
    frame: Frame | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y in a frame and mean, rstd [N, C] fp32, which are empty for norm "none".

    Args:
        x: [N, H, W, C] with any strides; contiguous ones are fast.
        gamma: as in `norm_act`, fp32 or x's dtype.
        beta: likewise.
        slope: prelu's, likewise.
        residual: of x's shape, with any strides.
        options: the options.
        statistics: mean and rstd of x, [N, C] fp32; None computes them if the norm needs them.
        frame: where y goes; dense without one. Line i of the result is at lead + i; what is
            neither image nor halo is written as zero, as are channels from C on.
    """
    samples, height, width, channels = x.shape
    frame = frame or _dense_frame(x, options.halo)
    mean, rstd = (x.new_empty(0, dtype=torch.float32) for _ in range(2))
    if options.norm != "none":
        mean, rstd = statistics or _statistics(x, options)
    y = frame.empty(samples, like=x)
    check_offsets(x, y, *([] if residual is None else [residual]))
    config, place, tiles = _tiled(frame)
    pointers, scalars = _parameters(mean, rstd, gamma, beta, slope, options, samples)
    launch(
        kernels.fprop_kernel,
        (samples * math.prod(tiles),),
        x,
        residual,
        *pointers,
        y,
        height,
        width,
        channels,
        *x.stride(),
        *(x if residual is None else residual).stride(),
        *scalars,
        *_halo(options),
        *place,
        *tiles,
        ACT=options.act,
        VEC=vector(frame.pitch),
        **config.launch_options(),
    )
    return y, mean, rstd


def _statistics(x: Tensor, options: NormActOptions) -> tuple[Tensor, Tensor]:
    """Return mean and rstd [N, C] fp32 of x [N, H, W, C]."""
    samples, height, width, channels = x.shape
    config = NormActConfig.of(channels)
    tiles, tiles_c = config.tiles(height * width, channels)
    partial = x.new_empty((samples, tiles, 3, channels), dtype=torch.float32)
    mean, rstd = (x.new_empty((samples, channels), dtype=torch.float32) for _ in range(2))
    merge = merge_of(x, tiles, channels, options.norm, config.block_c, config.num_warps)
    check_offsets(x)
    launch(
        kernels.statistics_kernel,
        (samples * tiles * tiles_c,),
        x,
        partial,
        mean,
        rstd,
        merge.counter,
        height * width,
        width,
        channels,
        *x.stride(),
        tiles,
        tiles_c,
        options.eps,
        int(merge.last),
        NORM=options.norm,
        **merge.constants(),
        **config.launch_options(),
    )
    if not merge.last:
        merge_statistics(partial, mean, rstd, options.norm, options.eps)
    return mean, rstd


def norm_act_backward_triton(
    dy: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    options: NormActOptions,
    frame: Frame | None = None,
    from_output: bool = False,
    residual: bool = False,
    sums: bool = True,
    more: Tensor | None = None,
    rows: Rows | None = None,
) -> NormActGradients:
    """Return the gradients for dy, that of the haloed y.

    Args:
        dy: [N, H + 2 * halo, W + 2 * halo, C], channel stride 1, any other strides.
        x: [N, H, W, C] with any strides; contiguous ones are fast.
        mean: as `norm_act_triton` gave it; without a norm it is not read.
        rstd: likewise.
        gamma: as `norm_act_triton` took it.
        beta: as `norm_act_triton` took it.
        slope: as `norm_act_triton` took it.
        options: the options.
        frame: where dx goes, surrounded by zeros whatever the padding mode; dense without one.
        from_output: as in `norm_act_backward_aten`.
        residual: as in `norm_act_backward_aten`; dresidual is [N, H, W, C].
        sums: as in `norm_act_backward_aten`.
        more: a gradient of y without its halo, which is added: [N, H, W, C], channel stride 1.
        rows: where the gradients of gamma, beta and a bias go, summed over samples; those that it
            has are not returned. Needs `sums`.
    """
    samples = len(x)
    if options.halo and not options.folds:
        dy = dy[:, options.halo : -options.halo, options.halo : -options.halo]
    pointers, scalars = _parameters(mean, rstd, gamma, beta, slope, options, samples)
    scalars = (*scalars, *_halo(options))
    modes = {"ACT": options.act, "FROM_OUTPUT": from_output}
    check_offsets(x, dy)
    total = coefficient = None
    if sums or options.norm != "none":
        total, coefficient = _sums(dy, more, x, pointers, scalars, modes, options, rows)

    frame = frame or _dense_frame(x, 0)
    dx = frame.empty(samples, like=x)
    check_offsets(dx)
    own = residual and (options.halo > 0 or more is not None)
    dresidual = x.new_empty(x.shape) if own else None
    pointers = (*pointers, None if options.norm == "none" else coefficient, dx)
    # One variant for all passes with a residual: where dy is its gradient, x stands in, unwritten.
    given = x if residual and dresidual is None else dresidual
    _apply(dy, more, x, pointers, given, own, scalars, modes, frame)
    if not sums or total is None or coefficient is None:
        return NormActGradients(dx, dresidual, None, None, None, None)
    rows = rows or Rows(None, None, None, False)
    return NormActGradients(
        dx=dx,
        dresidual=dresidual,
        dgamma=None if gamma is None or rows.gamma is not None else total[:, 1],
        dbeta=None if beta is None or rows.beta is not None else total[:, 0],
        dslope=None if slope is None else total[:, -1],
        dshift=None if options.norm == "in" or rows.shift is not None else coefficient[:, 2],
    )


def _sums(
    dy: Tensor,
    more: Tensor | None,
    x: Tensor,
    pointers: tuple[Tensor | None, ...],
    scalars: tuple[float, ...],
    modes: dict[str, Any],
    options: NormActOptions,
    rows: Rows | None,
) -> tuple[Tensor, Tensor]:
    """Return the sums over samples [N, SUMS, C], and b, c and the sum of dx [N, 3, C]."""
    samples, height, width, channels = x.shape
    pixels = dy.shape[1] * dy.shape[2]
    config = NormActConfig.of(channels, x.element_size())
    tiles, tiles_c = config.tiles(pixels, channels)
    count = 2 + (options.norm == "ln") + (options.act == "prelu")
    total, coefficient, sums = (
        x.new_empty(shape, dtype=torch.float32)
        for shape in (
            (samples, count, channels),
            (samples, 3, channels),
            (samples, tiles, count, channels),
        )
    )
    merge = merge_of(x, tiles, channels, options.norm, config.block_c, config.num_warps)
    launch(
        backward_kernels.backward_reduce_kernel,
        (samples * tiles * tiles_c,),
        dy,
        x,
        *pointers,
        dy if more is None else more,
        sums,
        total,
        coefficient,
        merge.counter,
        *row_arguments(rows if merge.last else None, total, merge.slots, merge.counter),
        height,
        width,
        channels,
        *dy.stride()[:3],
        *_strides(more),
        *x.stride(),
        *scalars,
        tiles,
        tiles_c,
        options.eps,
        options.tiny(torch.float32),
        int(merge.last),
        NORM=options.norm,
        SUMS=count,
        **merge.constants(),
        **modes,
        **config.launch_options(),
    )
    if not merge.last:
        _, rstd, gamma, _, _ = pointers
        merge_sums(
            sums, rstd, gamma, total, coefficient, height * width, scalars[0], options, rows,
            merge.counter,
        )  # fmt: skip
    if rows is not None and not samples:
        rows.finish_none()
    return total, coefficient


def _strides(more: Tensor | None) -> tuple[int, ...]:
    """Return the strides of samples, rows and columns, and 1 if there is a second gradient."""
    return (0, 0, 0, 0) if more is None else (*more.stride()[:3], 1)


def _apply(
    dy: Tensor,
    more: Tensor | None,
    x: Tensor,
    pointers: tuple[Tensor | None, ...],
    dresidual: Tensor | None,
    keeps: bool,
    scalars: tuple[float, ...],
    modes: dict[str, Any],
    frame: Frame,
) -> None:
    """Write dx, the last of the pointers, and dresidual if it `keeps` that."""
    samples, height, width, channels = x.shape
    halo, reflects = scalars[-2:]
    config, place, tiles = _tiled(frame)
    slack_tiles = cdiv(frame.slack, config.block_m) if samples else 0
    launch(
        backward_kernels.backward_apply_kernel,
        ((samples * tiles[0] + slack_tiles) * tiles[1],),
        dy,
        x,
        *pointers[:5],
        dy if more is None else more,
        *pointers[5:],
        dresidual,
        height,
        width,
        channels,
        *dy.stride()[:3],
        *_strides(more),
        *x.stride(),
        *scalars,
        3 if reflects else 1 + 2 * halo,
        *place,
        frame.slack,
        samples,
        *tiles,
        int(keeps),
        VEC=vector(frame.pitch),
        **modes,
        **config.launch_options(),
    )


def _halo(options: NormActOptions) -> tuple[int, int]:
    """Return the halo as the kernels see it, none if it is of zeros, and whether it reflects."""
    return (options.halo, int(options.pad_mode == "reflect")) if options.folds else (0, 0)


def _dense_frame(x: Tensor, halo: int) -> Frame:
    """Return the frame of [N, H, W, C] and its halo with nothing around them."""
    _, height, width, channels = x.shape
    return Frame(halo, height + 2 * halo, width + 2 * halo, channels)


def _tiled(frame: Frame) -> tuple[NormActConfig, tuple[int, ...], tuple[int, int]]:
    """Return tile sizes, the kernels' lead, pixels, width and pitch_v, and counts of tiles."""
    pixels = frame.height * frame.width
    config = NormActConfig.of(frame.pitch)
    place = (frame.lead, pixels, frame.width, frame.pitch // vector(frame.pitch))
    return config, place, config.tiles(pixels, frame.pitch)


def _parameters(
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    options: NormActOptions,
    samples: int,
) -> tuple[tuple[Tensor | None, ...], tuple[float, ...]]:
    """Return the kernels' pointers, mean to slope, and scalars, samples_per_gamma to slope."""
    affine_rows = [None if value is None else value.contiguous() for value in (gamma, beta)]
    statistics = (None, None) if options.norm == "none" else (mean, rstd)
    pointers = (*statistics, *affine_rows, None if slope is None else slope.contiguous())
    slope_step = 0 if slope is None or slope.shape[0] == 1 else 1
    per_row = (_samples_per_row(value, samples) for value in (gamma, beta))
    return pointers, (*per_row, slope_step, float(options.slope))


def _samples_per_row(parameter: Tensor | None, samples: int) -> int:
    rows = parameter.shape[0] if parameter is not None and parameter.dim() == 2 else 1
    return max(samples // max(rows, 1), 1)
