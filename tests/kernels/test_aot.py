"""What the kernels of a training step compile to for each architecture; no GPU needed.

The step is that of --config photos with pictures of 256x256, in bfloat16.
"""

from __future__ import annotations

import pytest
import torch
import triton

from bench.gpu import aot
from bench.gpu import compile as machine
from fastunit import config
from fastunit.kernels import conv_norm_act, upsample_conv
from fastunit.kernels.common import runtime
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tile_costs import GPUS, REGISTERS, Tile

PRODUCTS = {"conv_gemm_kernel", "wgrad_kernel"}
KERNELS = PRODUCTS | {
    "pack_kernel",
    "split_reduce_kernel",
    "_reparameterize_fprop_kernel",
    "_reparameterize_dgrad_kernel",
    "merge_kernel",
    "fprop_kernel",
    "backward_reduce_kernel",
    "backward_merge_kernel",
    "backward_apply_kernel",
    "lines_kernel",
    "lines_backward_kernel",
    "taps_kernel",
    "taps_backward_kernel",
    "shift_add_kernel",
    "dot_kernel",
    "dot_backward_kernel",
}
# Bytes that ptxas keeps in local memory across a product's loop, once a program.
PARKED = {(100, "wgrad", 128, 128): 16, (100, "conv_gemm", 128, 32): 32}
if triton.__version__.startswith("3.6."):
    PARKED |= {(80, "wgrad", 128, 256): 32}

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


def is_product(launch):
    return launch.kernel.fn.__name__ in PRODUCTS


def products(rows):
    return [row for row in rows if row.variant.name in PRODUCTS]


def tile_of(row):
    """Return a product's kernel and its block's rows, columns and depth."""
    constants = row.variant.constants
    if row.variant.name == "wgrad_kernel":
        return "wgrad", *(constants[name] for name in ("BLOCK_L", "BLOCK_N", "BLOCK_M"))
    return "conv_gemm", *(constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))


def require_none(offenders):
    """Fail with a table of the offenders, if there are any."""
    assert not offenders, "\n".join(["", *aot.table(offenders)])


def step_launches(arch):
    """Return all that a step launches on an H100; elsewhere, to save time, the products."""
    launches = aot.step_launches(config.load("photos", aot.SIZES), arch, torch.bfloat16)
    return launches if arch == 90 else list(filter(is_product, launches))


def candidate_launches(arch):
    """Return products with every tile that may be taken.

    They are those of a residual block, of a strided one, whose input's gradient has all phases of
    64 channels, and of upsampling, which corrects its border. float32 weights stand for a step's;
    where there are fewer tiles for filters than for windows, some are launched twice.
    """
    shapes = (1, 256, 64, 64), (256, 256, 3, 3), (256, 256, 4, 4), (256, 256, 5, 5), (256,)
    zeros = (torch.zeros(shape, dtype=torch.bfloat16).requires_grad_() for shape in shapes)
    x, w, w4, w5, b = zeros
    narrow, wide = (t.detach()[:, :64].requires_grad_() for t in (x, w4))
    with pytest.MonkeyPatch.context() as patch, runtime.recorded_launches(arch) as launches:
        for index in range(len(REGISTERS)):

            def one(product, index=index):
                found = {choice.tile: choice for choice in tiles.candidates(product)}
                return list(found.values())[index % len(found)]

            patch.setattr(tiles, "best", one)
            for y in (
                conv_norm_act(x, w, padding=1, norm="in", impl="triton"),
                conv_norm_act(x, w4, b, stride=2, padding=1, act="lrelu", impl="triton"),
                conv_norm_act(narrow, wide, b, stride=2, padding=1, act="lrelu", impl="triton"),
                upsample_conv(x, w5, b, padding=2, pad_mode="reflect", norm="ln", impl="triton"),
            ):
                y.backward(torch.zeros_like(y))
    return list(filter(is_product, launches))


@pytest.fixture(
    scope="module",
    params=[
        *((step_launches, arch) for arch in (90, 80, 100)),
        *((candidate_launches, arch) for arch in (90, 80, 100)),
    ],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def rows(request):
    """Return what the launches compile to: variants, their counts and machine code."""
    launches, arch = request.param
    return aot.compile_launches(launches(arch), arch)


@pytest.fixture(scope="module")
def arch(rows):
    return rows[0].variant.target.arch


@pytest.mark.slow
def test_every_kernel_is_compiled(rows, request):
    everything = "step_launches-90" in request.node.name
    assert {row.variant.name for row in rows} == (KERNELS if everything else PRODUCTS)
    assert len(rows) > 15


@pytest.mark.slow
def test_nothing_spills(rows, arch):
    """Nothing in a loop, and outside of one only what is known of a tile."""

    def spills(row):
        parked = PARKED.get((arch, *tile_of(row)[:3]), 0) if products([row]) else 0
        code = row.binary.loop or () if parked else row.binary.code
        return row.binary.stack > parked or any(found.mnemonic in machine.LOCAL for found in code)

    require_none([row for row in rows if spills(row)])


@pytest.mark.slow
def test_shared_memory_fits(rows, arch):
    limit = GPUS[arch].shared
    require_none([row for row in rows if row.binary.shared > limit])


@pytest.mark.slow
def test_the_cost_function_knows_registers_and_shared_memory(rows, arch):
    def unexpected(row):
        options = row.variant.options
        kernel, *block = tile_of(row)
        tile = Tile(*block, options.num_warps, options.num_stages)
        registers = REGISTERS[kernel, tile.block_m, tile.block_n][list(GPUS).index(arch)]
        # A program of wgrad may keep more than its operands: a transposed one.
        more = 0 if kernel == "conv_gemm" else tile.bytes_of_step(2) // 2
        shared = tile.shared(arch, 2) + more + 1024
        return row.binary.registers > registers or row.binary.shared > shared

    without_border = [
        row for row in products(rows) if row.variant.arguments.get("border_ptr") in (None, "None")
    ]
    require_none([row for row in without_border if unexpected(row)])


@pytest.mark.slow
def test_products_run_on_tensor_cores(rows, arch):
    def used(row):
        return {found.mnemonic for found in row.binary.loop or () if found.is_tensor_core}

    wanted = {machine.TENSOR_CORE[arch]}
    require_none([row for row in products(rows) if used(row) != wanted])


@pytest.mark.slow
def test_products_load_as_wide_as_channels_allow(rows):
    """A load moves 16 bytes where the channels' pitch is a multiple of 8, else 8 bytes."""

    def narrowest(row):
        return min(load.load_bits for load in row.binary.loop if load.load_bits)

    def allowed(row):
        constants = row.variant.constants
        return 16 * min(constants["VEC"], constants.get("VEC_DY", 8))

    require_none([row for row in products(rows) if narrowest(row) < allowed(row)])
    assert {128} <= set(map(allowed, products(rows))) <= {64, 128}


@pytest.mark.slow
def test_short_tables_show_the_worst_and_count_all(rows):
    def launches(line):
        return int(line.split("|")[1 + list(aot.COLUMNS).index("launches")])

    full, short = aot.table(rows, full=True)[2:], aot.table(rows, full=False)[2:]
    assert len(short) < len(full) == len(rows)
    total = sum(row.launches for row in rows)
    assert sum(map(launches, full)) == sum(map(launches, short)) == total
