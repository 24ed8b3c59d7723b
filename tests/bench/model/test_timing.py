"""The time of a kernel: resident programs, waves, bytes; and the constants' file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.model import gpu
from bench.model.gpu import H100
from bench.model.kernels import Cost, resident
from bench.model.timing import Gemm, library_gemm, microseconds, waves
from fastunit.common.errors import UserError


def product(programs, resident=2, area=128 * 128, **changes):
    cost = Cost(0, 0, 0, programs * 2 * area * 2304, programs, resident, area=area)
    return replace(cost, **changes)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [
        (128, 98 << 10, 8, 2),  # both limits allow two
        (128, 0, 8, 2),
        (255, 0, 8, 1),
        (32, 114 << 10, 4, 1),  # a program takes 1 KiB more than it asks for
        (32, 113 << 10, 4, 2),
        (16, 0, 4, 16),  # 64 warps
        (16, 0, 1, 32),
        (255, 227 << 10, 16, 1),
    ],
)
def test_programs_that_fit_on_a_multiprocessor(registers, shared, warps, programs):
    assert resident(H100, registers, shared, warps) == programs


def test_a_second_program_on_some_multiprocessors_costs_half_as_much_again():
    assert waves(product(140), H100) / waves(product(132), H100) == pytest.approx(1.5)
    assert waves(product(132), H100) == waves(product(1), H100)
    assert waves(product(264), H100) == waves(product(140), H100)
    assert waves(product(265), H100) > waves(product(264), H100)


def test_full_waves_run_at_the_rate_of_the_tensor_cores():
    cost = product(264 * 10)
    assert cost.flops / waves(cost, H100) / 1e6 == pytest.approx(H100.tensor_tflops)


def test_a_kernel_takes_the_longest_of_its_limits_and_the_gap():
    gap, shortest = H100.gap_us, H100.shortest_us
    assert microseconds(Cost(10, 10, 20, 0), H100) == gap + shortest
    assert microseconds(Cost(29_000_000, 0, 0, 0), H100) == pytest.approx(10 + gap)
    assert microseconds(Cost(0, 29_000_000, 0, 0), H100) == pytest.approx(10 + gap)
    reread = product(264, l2_bytes=700_000_000)
    assert microseconds(reread, H100) == pytest.approx(100 + gap)
    # What is no product waits for memory alone.
    assert microseconds(replace(reread, area=0), H100) == gap + shortest


def test_a_library_takes_its_best_tile():
    one_tile = Gemm(128, 128, 64)
    assert library_gemm(one_tile, H100, 0, 0) == H100.gap_us + H100.shortest_us
    # A deep and narrow product is split, so that more than one multiprocessor works.
    deep = Gemm(128, 128, 1 << 18)
    alone = 2 * 128 * 128 * 2**18 / (H100.library_tflops / 132) / 1e6
    assert library_gemm(deep, H100, 0, 0) < alone / 10
    large = Gemm(8192, 8192, 8192)
    rate = 2 * 8192**3 / library_gemm(large, H100, 0, 0) / 1e6
    assert 0.8 * H100.library_tflops < rate <= H100.library_tflops


def test_measured_constants_replace_ours(tmp_path):
    file = tmp_path / "h100.json"
    file.write_text(json.dumps({"gap_us": 0.5, "memory_tb_per_s": 3, "name": "mine"}))
    found = gpu.read(90, str(file))
    assert found == replace(H100, gap_us=0.5, memory_tb_per_s=3, name="mine", origin=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"gap": 1}', "no constant 'gap'"),
        ('{"gap_us": "1"}', "gap_us='1' must be a number"),
        ('{"gap_us": true}', "must be a number"),
        ("[1]", "an object"),
        ("{", "h100.json"),
        (None, "h100.json"),
    ],
)
def test_a_wrong_file_of_constants_is_refused(tmp_path, text, message):
    file = tmp_path / "h100.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        gpu.read(90, str(file))
