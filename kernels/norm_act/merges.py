"""Launchers of the merges of tiles' partial results: in the program that ends last, or apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common.runtime import cdiv, counters, launch, next_power_of_2
from fastunit.kernels.norm_act import merge_kernels as kernels
from fastunit.kernels.norm_act.aten import NormActOptions
from fastunit.kernels.norm_act.rows import Rows

# Tiles of an image that one program merges at the end of the kernel that made them: more than
# eight reads in a row take as long as a launch (modelled), of so many values a thread.
FEW_TILES = 128
_VALUES = 8


class Merge(NamedTuple):
    """How tiles are merged: by the `last` program of an image, or by a kernel of its own."""

    counter: Tensor | None
    last: bool
    slots: int  # of channels: an image has a last program for each
    block_t: int
    block_c: int

    def constants(self) -> dict[str, int]:
        return {"MERGE_T": self.block_t, "MERGE_C": self.block_c}


def row_arguments(
    rows: Rows | None, total: Tensor, slots: int, unused: Tensor | None
) -> tuple[Tensor | int | None, ...]:
    """Return the kernels' arguments, dbeta to `add`, for `total` [N, ...] of slots of channels.

    Without rows, which takes no counter, `unused` is in its place.
    """
    if rows is None:
        return total, total, total, 0, 0, 0, unused, 1, 0, 0
    given = {i: each for i, each in enumerate(rows[:3]) if each is not None}
    one = next(iter(given.values()))
    pointers = (given.get(i, one) for i in range(3))
    strides = (given[i].stride(0) if i in given else 0 for i in range(3))
    counter, wanted = counters(len(one) * slots, total.device), sum(1 << i for i in given)
    return *pointers, *strides, counter, len(total) // len(one), wanted, int(rows.add)


def merge_of(
    like: Tensor, tiles: int, channels: int, norm: str, block_c: int, num_warps: int
) -> Merge:
    """Return how to merge `tiles` tiles of `block_c` channels of each of like's images."""
    samples, slots = len(like), cdiv(channels, block_c)
    last = 0 < tiles <= FEW_TILES and math.prod(like.shape) > 0
    # "ln" is over the channels too: one program has all of a sample's. Otherwise nothing is merged,
    # and constants that do not depend on the channels save a variant.
    if norm == "ln" and last:
        block_c, slots = next_power_of_2(max(channels, block_c)), 1
    counter = counters(samples * slots, like.device)
    return Merge(counter, last, slots, max(_VALUES * 32 * num_warps // block_c, 1), block_c)


def merge_statistics(
    partial: Tensor, mean: Tensor, rstd: Tensor, norm: str, eps: float
) -> tuple[Tensor, Tensor]:
    """Write mean and rstd [N, C] fp32 of tiles' mean, M2 and count, [N, T, 3, C] fp32."""
    samples, tiles, _, channels = partial.shape
    blocks = _apart(channels, norm)
    tiles_c = cdiv(channels, blocks["BLOCK_C"])
    launch(
        kernels.merge_kernel, (samples * tiles_c,),
        partial, mean, rstd, tiles, channels, tiles_c, eps,
        NORM=norm, **blocks,
    )  # fmt: skip
    return mean, rstd


def merge_sums(
    sums: Tensor,
    rstd: Tensor | None,
    gamma: Tensor | None,
    total: Tensor,
    coefficient: Tensor,
    pixels: int,
    samples_per_gamma: float,
    options: NormActOptions,
    rows: Rows | None,
    counter: Tensor | None,
) -> None:
    """Write a sample's sums [N, SUMS, C] and coefficients [N, 3, C] of tiles [N, T, SUMS, C].

    Without rows `counter` is not used; a kernel needs one.
    """
    samples, tiles, count, channels = sums.shape
    blocks = _apart(channels, options.norm)
    tiles_c = cdiv(channels, blocks["BLOCK_C"])
    launch(
        kernels.backward_merge_kernel, (samples * tiles_c,),
        sums, total if rstd is None else rstd, gamma, total, coefficient, int(rstd is not None),
        *row_arguments(rows, total, tiles_c, counter),
        tiles, channels, pixels, samples_per_gamma, options.eps, options.tiny(torch.float32),
        tiles_c, LN=options.norm == "ln", SUMS=count, **blocks,
    )  # fmt: skip


def _apart(channels: int, norm: str) -> dict[str, int]:
    """Return the tile that a program of a merge kernel reads at a time, and its warps."""
    every = next_power_of_2(max(channels, 4))
    block_c, warps = min(16, every), 4
    if norm == "ln":  # over all channels; 64 and 128 of them in one variant, with as many reads
        block_c, warps = max(128, every), 8
    return {"BLOCK_T": max(1024 * warps // block_c, 1), "BLOCK_C": block_c, "num_warps": warps}
