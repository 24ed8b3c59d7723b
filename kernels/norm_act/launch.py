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


@dataclass(frozen=True)
class MergeConfig:
    """Tile of the merges: BLOCK_T partial results at a time of BLOCK_C channels."""

    block_t: int
    block_c: int

    @staticmethod
    def of(tiles: int, channels: int, norm: str) -> MergeConfig:
        # "ln" merges over the channels too, so that one program has all of a sample's.
        every = next_power_of_2(max(channels, 4))
        block_c = every if norm == "ln" else min(16, every)
        # Two sizes, so that few variants are compiled: one for few tiles, and what registers hold.
        largest = max(4096 // block_c, 1)
        return MergeConfig(min(64, largest) if tiles <= 64 else largest, block_c)


def norm_act_triton(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    slope: Tensor | None,
    residual: Tensor | None,
    options: NormActOptions,
    partial: Tensor | None = None,
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
        partial: statistics [N, T, 3, C] fp32 of disjoint parts of x that cover it: mean, M2 and
            count, which may be 0; None computes them.
        frame: where y goes; dense without one. Line i of the result is at lead + i; what is
            neither image nor halo is written as zero, as are channels from C on.
    """
    samples, height, width, channels = x.shape
    frame = frame or _dense_frame(x, options.halo)
    mean, rstd = (x.new_empty(0, dtype=torch.float32) for _ in range(2))
    if options.norm != "none":
        mean, rstd = _merge(_statistics(x) if partial is None else partial, options)
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
        options.halo,
        *place,
        *tiles,
        PAD_MODE=options.pad_mode,
        ACT=options.act,
        VEC=vector(frame.pitch),
        **config.launch_options(),
    )
    return y, mean, rstd


def _statistics(x: Tensor) -> Tensor:
    """Return mean, M2 and count of tiles of pixels, [N, T, 3, C] fp32, of x [N, H, W, C]."""
    samples, height, width, channels = x.shape
    config = NormActConfig.of(channels)
    tiles, tiles_c = config.tiles(height * width, channels)
    partial = x.new_empty((samples, tiles, 3, channels), dtype=torch.float32)
    check_offsets(x)
    launch(
        kernels.statistics_kernel,
        (samples * tiles * tiles_c,),
        x,
        partial,
        height * width,
        width,
        channels,
        *x.stride(),
        tiles,
        tiles_c,
        **config.launch_options(),
    )
    return partial


def _merge(partial: Tensor, options: NormActOptions) -> tuple[Tensor, Tensor]:
    """Return mean and rstd [N, C] fp32."""
    samples, tiles, _, channels = partial.shape
    config = MergeConfig.of(tiles, channels, options.norm)
    tiles_c = cdiv(channels, config.block_c)
    mean, rstd = (partial.new_empty((samples, channels)) for _ in range(2))
    launch(
        kernels.merge_kernel,
        (samples * tiles_c,),
        partial,
        mean,
        rstd,
        tiles,
        channels,
        tiles_c,
        options.eps,
        NORM=options.norm,
        BLOCK_T=config.block_t,
        BLOCK_C=config.block_c,
    )
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
    """
    samples, height, width, _ = x.shape
    if options.halo and not options.folds:
        dy = dy[:, options.halo : -options.halo, options.halo : -options.halo]
    pointers, scalars = _parameters(mean, rstd, gamma, beta, slope, options, samples)
    scalars = (*scalars, options.halo if options.folds else 0)
    pad_mode = options.pad_mode if options.folds else "zero"
    modes = {"PAD_MODE": pad_mode, "ACT": options.act, "FROM_OUTPUT": from_output}
    check_offsets(x, dy)
    total = coefficient = None
    if sums or options.norm != "none":
        tile_sums = _sum_over_tiles(dy, x, pointers, scalars, modes, options.norm)
        total, coefficient = _merge_sums(tile_sums, pointers, scalars, height * width, options)

    frame = frame or _dense_frame(x, 0)
    dx = frame.empty(samples, like=x)
    check_offsets(dx)
    dresidual = x.new_empty(x.shape) if residual and options.halo else None
    pointers = (*pointers, None if options.norm == "none" else coefficient, dx, dresidual)
    _apply(dy, x, pointers, scalars, modes, frame)
    if not sums or total is None or coefficient is None:
        return NormActGradients(dx, dresidual, None, None, None, None)
    return NormActGradients(
        dx=dx,
        dresidual=dresidual,
        dgamma=None if gamma is None else total[:, 1],
        dbeta=None if beta is None else total[:, 0],
        dslope=None if slope is None else total[:, -1],
        dshift=None if options.norm == "in" else coefficient[:, 2],
    )


def _sum_over_tiles(
    dy: Tensor,
    x: Tensor,
    pointers: tuple[Tensor | None, ...],
    scalars: tuple[float, ...],
    modes: dict[str, Any],
    norm: str,
) -> Tensor:
    """Return the sums over tiles of padded pixels, [N, T, SUMS, C] fp32."""
    samples, height, width, channels = x.shape
    pixels = dy.shape[1] * dy.shape[2]
    config = NormActConfig.of(channels, x.element_size())
    tiles, tiles_c = config.tiles(pixels, channels)
    count = 2 + (norm == "ln") + (modes["ACT"] == "prelu")
    sums = x.new_empty((samples, tiles, count, channels), dtype=torch.float32)
    launch(
        backward_kernels.backward_reduce_kernel,
        (samples * tiles * tiles_c,),
        dy,
        x,
        *pointers,
        sums,
        height,
        width,
        channels,
        *dy.stride()[:3],
        *x.stride(),
        *scalars,
        tiles,
        tiles_c,
        NORM=norm,
        SUMS=count,
        **modes,
        **config.launch_options(),
    )
    return sums


def _merge_sums(
    tile_sums: Tensor,
    pointers: tuple[Tensor | None, ...],
    scalars: tuple[float, ...],
    pixels: int,
    options: NormActOptions,
) -> tuple[Tensor, Tensor]:
    """Return the sums over samples [N, SUMS, C], and b, c and the sum of dx [N, 3, C]."""
    samples, tiles, count, channels = tile_sums.shape
    config = MergeConfig.of(tiles, channels, options.norm)
    tiles_c = cdiv(channels, config.block_c)
    total = tile_sums.new_empty((samples, count, channels))
    coefficient = tile_sums.new_empty((samples, 3, channels))
    _, rstd, gamma, _, _ = pointers
    launch(
        backward_kernels.backward_merge_kernel,
        (samples * tiles_c,),
        tile_sums,
        rstd,
        gamma,
        total,
        coefficient,
        tiles,
        channels,
        pixels,
        scalars[0],
        options.eps,
        options.tiny(torch.float32),
        tiles_c,
        NORM=options.norm,
        SUMS=count,
        BLOCK_T=config.block_t,
        BLOCK_C=config.block_c,
    )
    return total, coefficient


def _apply(
    dy: Tensor,
    x: Tensor,
    pointers: tuple[Tensor | None, ...],
    scalars: tuple[float, ...],
    modes: dict[str, Any],
    frame: Frame,
) -> None:
    """Write dx and dresidual, the last two of the pointers."""
    samples, height, width, channels = x.shape
    halo = scalars[-1]
    config, place, tiles = _tiled(frame)
    launch(
        backward_kernels.backward_apply_kernel,
        (samples * math.prod(tiles),),
        dy,
        x,
        *pointers,
        height,
        width,
        channels,
        *dy.stride()[:3],
        *x.stride(),
        *scalars,
        {"zero": 1, "reflect": 3, "replicate": 1 + 2 * halo}[modes["PAD_MODE"]],
        *place,
        *tiles,
        VEC=vector(frame.pitch),
        **modes,
        **config.launch_options(),
    )


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
