"""The kernel that lays out all filters of a network against its ATen twin, and against sums."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels.conv.layouts import layouts
from fastunit.kernels.conv.packed import Block, PackedFilters

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BLOCKS = {
    "conv": [((6, 5, 3, 3), "conv", 1, 1), ((3, 9, 7, 7), "conv", 1, 1)],
    "few channels": [((3, 33, 7, 7), "conv", 1, 2), ((20, 3, 3, 5), "conv", 1, 1)],
    "two domains, strided": [((70, 3, 4, 4), "conv", 2, 2)],
    "stride 3": [((4, 5, 5, 5), "conv", 3, 1), ((4, 5, 2, 3), "conv", 1, 1)],
    "transpose": [((9, 4, 3, 3), "transpose", 2, 1), ((4, 6, 1, 1), "transpose", 1, 2)],
    "upsample": [((6, 5, 5, 5), "upsample", 1, 2), ((4, 5, 3, 3), "upsample", 1, 1)],
    "wider than a tile": [((70, 66, 1, 2), "conv", 1, 1), ((66, 65, 2, 2), "upsample", 1, 1)],
}


def blocks_of(name, form=torch.contiguous_format, dtype=torch.float32):
    return [
        Block(
            tuple(torch.randn(shape, dtype=dtype).to(memory_format=form) for _ in range(n)), *rest
        )
        for *_, shape, n, rest in ((s, g, (kind, step)) for s, kind, step, g in BLOCKS[name])
    ]


def wanted(block, dtype):
    w = torch.stack(block.weights)
    return [layout.make(w, dtype) for layout in layouts(*block[1:], w.shape)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", BLOCKS)
def test_it_writes_what_the_twin_writes(name, form):
    blocks = blocks_of(name, FORMATS[form])
    packed = PackedFilters(blocks, torch.float32)
    packed.write()
    for block, filters in zip(blocks, packed.filters, strict=True):
        for mine, twin in zip(filters[1:3], wanted(block, torch.float32), strict=True):
            assert torch.equal(mine, twin)  # the sums of combined filters in the same order


@pytest.mark.parametrize("name", ["conv", "upsample"])
def test_halves_are_rounded_once_from_float64s_sum(name):
    blocks = blocks_of(name)
    packed = PackedFilters(blocks, torch.bfloat16)
    packed.write()
    for block, filters in zip(blocks, packed.filters, strict=True):
        exact = Block(tuple(w.double() for w in block.weights), *block[1:])
        for mine, sums in zip(filters[1:3], wanted(exact, torch.float64), strict=True):
            assert ((mine.double() - sums).abs() <= 2**-7 * sums.abs()).all()  # it truncates


def test_weights_of_several_dtypes_are_read_each_in_its_own():
    blocks = [*blocks_of("conv"), *blocks_of("transpose", dtype=torch.float16)]
    packed = PackedFilters(blocks, torch.float32)
    packed.write()
    for block, filters in zip(blocks, packed.filters, strict=True):
        for mine, twin in zip(filters[1:3], wanted(block, torch.float32), strict=True):
            assert torch.equal(mine, twin)


def test_changes_that_no_version_counts_and_moves_are_followed():
    first, *_ = blocks_of("conv")
    weight = torch.nn.Parameter(first.weights[0])
    block = Block((weight,), *first[1:])
    packed = PackedFilters([block], torch.float32)
    for change in (lambda: None, lambda: weight.data.mul_(-2), lambda: move(weight)):
        change()
        packed.write()
        for mine, twin in zip(packed.filters[0][1:3], wanted(block, torch.float32), strict=True):
            assert torch.equal(mine, twin)


def move(parameter):
    parameter.data = torch.randn_like(parameter)
