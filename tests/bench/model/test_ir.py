"""What is read from a kernel's Triton IR: bytes, FLOPs, loops."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from bench.gpu import compile as machine
from bench.model import kernels
from bench.model.gpu import H100
from bench.model.ir import Kernel
from bench.model.kernels import Compiler
from bench.model.trace import triton_event
from fastunit.kernels.common import runtime
from fastunit.kernels.common.runtime import Launch
from fastunit.kernels.common.variants import specialise

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


@triton.jit
def _copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n).to(tl.float32), mask=offs < n)


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, depth, split, BLOCK: tl.constexpr, STEP: tl.constexpr):
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, STEP)
    first = tl.program_id(0) * split
    size = tl.minimum(split, depth - first)
    a_ptrs = a_ptr + rows[:, None] * depth + columns[None, :] + first
    b_ptrs = b_ptr + columns[:, None] * BLOCK + rows[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(tl.cdiv(size, STEP)):
        acc = tl.dot(tl.load(a_ptrs), tl.load(b_ptrs), acc)
        a_ptrs += STEP
        b_ptrs += STEP * BLOCK
    tl.store(c_ptr + rows[:, None] * BLOCK + rows[None, :], acc)


@triton.jit
def _table_kernel(table_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    source = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(y_ptr + offs, tl.load(source + offs))


@triton.jit
def _branches_kernel(x_ptr, y_ptr, counter_ptr, programs, wanted, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    if wanted != 0:
        tl.store(y_ptr + offs, 1.0)
    else:
        tl.store(y_ptr + offs, tl.load(x_ptr + offs))
    if tl.atomic_add(counter_ptr, 1) == programs - 1:
        tl.store(x_ptr + offs, 2.0)
    if tl.load(y_ptr) > 0:
        tl.store(x_ptr + offs, 3.0)


def cost_of(kernel, grid, *args, num_warps=4, **constexprs):
    event = triton_event(Launch(kernel, grid, args, constexprs, num_warps, 3), 90, "here")
    compiler = Compiler(H100)
    compiler.prepare([event])
    return compiler.cost(event)


def test_a_copy_moves_each_tensor_once():
    x, y = torch.empty(1000, dtype=torch.bfloat16), torch.empty(1000)
    cost = cost_of(_copy_kernel, (8,), x, y, 1000, BLOCK=128)
    # The mask cuts 1024 values to the tensor's 1000.
    assert (cost.bytes_in, cost.bytes_out, cost.flops, cost.area) == (2000, 4000, 0, 0)
    assert cost.l2_bytes == 6000 and cost.programs == 8
    assert 0 < cost.registers < 64 and cost.resident == 16  # of four warps in 64


def test_a_kernel_that_touches_a_part_moves_a_part():
    x, y = torch.empty(100_000), torch.empty(100_000)
    cost = cost_of(_copy_kernel, (2,), x, y, 100_000, BLOCK=128)
    assert (cost.bytes_in, cost.bytes_out) == (1024, 1024)


def test_a_loop_counts_its_trips_for_the_arguments():
    depth, block, step = 1024, 64, 32
    a, b = (torch.empty(block, depth, dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty(block, block)
    cost = cost_of(_product_kernel, (4,), a, b, c, depth, 256, BLOCK=block, STEP=step)
    assert cost.flops == 4 * 2 * block * block * 256  # not 1024: each program has a split
    assert cost.area == block * block
    loaded, stored = 4 * 2 * block * 256 * 2, 4 * block * block * 4
    assert cost.l2_bytes == loaded + stored
    assert cost.bytes_in == a.nbytes + b.nbytes and cost.bytes_out == c.nbytes


@pytest.mark.parametrize("wanted", [0, 1])
def test_branches_are_taken_by_those_programs_that_take_them(wanted):
    x, y, counter = torch.empty(64), torch.empty(64), torch.zeros(3, dtype=torch.int32)
    launch = Launch(_branches_kernel, (12,), (x, y, counter, 4, wanted), {"BLOCK": 64}, 4, 3)
    event = triton_event(launch, 90, "here")
    compiler = Compiler(H100)
    compiler.prepare([event])
    counts = compiler.found[event.variant.key].kernel.count(event.arguments, event.grid)
    assert counts.loaded["x_ptr"] == (0 if wanted else 12 * 64 * 4)
    assert counts.stored["y_ptr"] == 12 * 64 * 4
    # By the last of each 4 programs, and in the branch that only the values decide by all.
    assert counts.stored["x_ptr"] == (3 + 12) * 64 * 4


def test_what_a_loaded_pointer_points_to_is_counted():
    table, y = torch.zeros(4, dtype=torch.int64), torch.empty(64)
    cost = cost_of(_table_kernel, (4,), table, y, BLOCK=64)
    assert cost.bytes_in == 4 * 8 + 4 * 64 * 4


@pytest.mark.parametrize("stored", [1, 2])
def test_a_kernel_that_reaches_other_tensors_reads_by_what_it_stores(stored, monkeypatch):
    x, y = torch.empty(8, dtype=torch.bfloat16), torch.empty(1000)
    assert cost_of(_copy_kernel, (8,), x, y, 1000, BLOCK=128).bytes_in == 16
    monkeypatch.setattr(kernels, "REACHING", {"_copy_kernel": ("x_ptr", "y_ptr", stored)})
    assert cost_of(_copy_kernel, (8,), x, y, 1000, BLOCK=128).bytes_in == 1000 // stored * 2


def test_both_accesses_of_an_atomic_are_seen():
    types = "(tensor<128x!tt.ptr<f32>>, tensor<128xf32>) -> tensor<128xf32>"
    text = f"""
  tt.func public @kernel(%x_ptr: !tt.ptr<f32> {{tt.divisibility = 16 : i32}} loc("x_ptr"(#loc))) {{
    %v = arith.constant dense<1.0> : tensor<128xf32> loc(#loc1)
    %p = tt.splat %x_ptr : !tt.ptr<f32> -> tensor<128x!tt.ptr<f32>> loc(#loc1)
    %o = tt.atomic_rmw fadd, acq_rel, gpu, %p, %v : {types} loc(#loc2)
    tt.return loc(#loc2)
  }} loc(#loc)
"""
    counts = Kernel(text).count({}, (3,))
    assert counts.loaded == counts.stored == {"x_ptr": 3 * 128 * 4}


def test_registers_are_those_of_the_listing():
    x = torch.empty(128)
    variant = specialise(Launch(_copy_kernel, (1,), (x, x, 128), {"BLOCK": 128}, 4, 3), 90)
    cost = cost_of(_copy_kernel, (1,), x, x, 128, BLOCK=128)
    assert cost.registers == machine.compile_variant(variant).registers
