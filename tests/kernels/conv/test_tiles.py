"""Which tiles and splits products take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastunit.kernels.common import runtime
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tile_costs import (
    GPUS,
    REGISTERS,
    Choice,
    Product,
    Tile,
    cost,
    resident,
    waves,
)
from tests.support.checkout import ROOT

# x's dtype, images, windows of each, channels out, taps, run: layers of UNIT at 256x256.
LAYERS = [
    (torch.bfloat16, 1, 64 * 64, 256, 3, 768),
    (torch.bfloat16, 8, 64 * 64, 256, 3, 768),
    (torch.bfloat16, 1, 128 * 128, 128, 4, 256),
    (torch.bfloat16, 1, 256 * 256, 64, 7, 28),
    (torch.bfloat16, 1, 256 * 256, 3, 7, 448),
    (torch.float32, 1, 64 * 64, 256, 3, 768),
    (torch.bfloat16, 2, 1, 1, 1, 16),
]
FAR = 2**31
X = torch.empty(0, dtype=torch.bfloat16)


def product(kernel="conv_gemm", arch=90, results=2, rows=4096, columns=256, runs=3, run=768):
    count = GPUS[arch].multiprocessors
    return Product(kernel, arch, count, 2, "ieee", results, rows, columns, runs, run)


@pytest.fixture
def h100():
    with runtime.recorded_launches(90):
        yield


@pytest.mark.parametrize(
    ("channels", "options", "columns"),
    [  # the most columns of a tile among the candidates
        (64, {"phases": 4, "whole": True}, 128),
        (64, {"phases": 4, "whole": True, "border": True}, 128),
        (64, {"phases": 4}, 64),
        (24, {"phases": 16, "whole": True, "border": True}, 128),
        (24, {"phases": 9, "whole": True}, 32),
        (384, {"phases": 4, "whole": True}, 128),
        (64, {}, 64),
    ],
)
def test_a_tile_has_the_columns_of_several_phases(channels, options, columns, h100, monkeypatch):
    def widest(product):
        assert product.results * product.columns >= 2 * channels * options.get("phases", 1)
        return max(tiles.candidates(product), key=lambda choice: choice.tile.block_n)

    monkeypatch.setattr(tiles, "best", widest)
    tile = tiles.for_windows(X, "ieee", 2, 4096, channels, 3, 192, **options)
    assert tile.block_n == columns


@pytest.mark.parametrize("arch", GPUS)
@pytest.mark.parametrize("layer", LAYERS)
def test_candidates_fit(layer, arch):
    dtype, images, windows, channels, taps, run = layer
    size, count = dtype.itemsize, GPUS[arch].multiprocessors
    columns = tiles.filter_columns(channels)
    of_windows = Product(
        "conv_gemm", arch, count, size, "ieee", images, windows, channels, taps, run
    )
    of_filters = Product("wgrad", arch, count, size, "ieee", taps, run, channels, 1, windows)
    for each in (of_windows, of_filters):
        found = tiles.candidates(each)
        assert 1 <= len(found) == len(set(found))
        for tile, splits in found:
            assert resident(each, tile) >= 1
            assert tile.block_m >= 64  # a warp group's share of wgmma
            assert splits == 1 or each is of_filters
    assert all(columns % choice.tile.block_n == 0 for choice in tiles.candidates(of_windows))


@pytest.mark.parametrize("arch", GPUS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_cheapest_candidate_is_taken(layer, arch):
    dtype, images, windows, channels, taps, run = layer
    with runtime.recorded_launches(arch):
        x = torch.empty(0, dtype=dtype)
        tile = tiles.for_windows(x, "ieee", images, windows, channels, taps, run)
    each = Product(
        "conv_gemm", arch, GPUS[arch].multiprocessors, dtype.itemsize, "ieee",
        images, windows, channels, taps, run,
    )  # fmt: skip
    assert cost(each, Choice(tile)) == min(cost(each, other) for other in tiles.candidates(each))


def test_residual_blocks_take_large_tiles(h100):
    def tile(images):
        return tiles.for_windows(X, "ieee", images, 64 * 64, 256, 3, 768)

    # 128 programs of 128x128 load two thirds of what 256 of 64x128 do: 132 do not need to be busy.
    assert (tile(2).block_m, tile(2).block_n) == (128, 128)
    assert (tile(16).block_m, tile(16).block_n) == (256, 128)


def test_splits_do_not_begin_another_wave(h100, monkeypatch):
    monkeypatch.setitem(REGISTERS, ("wgrad", 128, 128), (128, 128, 128))  # two programs at a time
    each = product("wgrad", results=6, rows=768, columns=256, runs=1, run=4222)
    choice = tiles.best.__wrapped__(each)
    assert choice.splits > 1 and waves(each, choice) <= 1


def test_splits_end_where_int32_ends(h100):
    def pixels(count, largest=FAR):
        tile, found = tiles.for_filters(X, "ieee", 6, 768, 256, count, largest)
        assert found % tile.block_k == 0
        return found

    assert pixels(10) == 64
    assert pixels(10**6) * tiles.MOST_SPLITS >= 10**6
    assert pixels(10**6, 10_000) == 9984


def test_a_gpu_of_fewer_multiprocessors_is_asked(monkeypatch):
    """An H100 for PCI Express has 114."""
    found = SimpleNamespace(major=9, minor=0, multi_processor_count=114)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    runtime._properties.cache_clear()
    try:
        device = torch.device("cuda", 0)
        assert runtime.arch(device) == 90 and runtime.multiprocessors(device) == 114
        on_gpu = tiles._product("conv_gemm", SimpleNamespace(device=device, element_size=lambda: 2),
                                "tf32", 1, 2, 3, 4, 5)  # fmt: skip
        assert on_gpu == Product("conv_gemm", 90, 114, 2, "ieee", 1, 2, 3, 4, 5)
    finally:
        runtime._properties.cache_clear()
    with runtime.recorded_launches(90, 114):
        assert tiles._product("wgrad", X, "ieee", *range(5)).multiprocessors == 114
    with runtime.recorded_launches(90):
        assert tiles._product("wgrad", X, "ieee", *range(5)).multiprocessors == 132


def test_what_is_measured_overrides_the_cost(monkeypatch):
    each, measured = product(results=77), Choice(Tile(64, 64, 64, 4, 4))
    monkeypatch.setitem(tiles.MEASURED, each, measured)
    assert tiles.best(each) == measured
    tiles.best.cache_clear()


def test_nothing_is_timed_or_asks_whether_a_graph_is_captured():
    """So a capture takes the tile of the steps before it, which have loaded it.

    Branches of a graph have to ask, and take no tile.
    """
    for path in {*(ROOT / "kernels").rglob("*.py")} - {ROOT / "kernels/common/branches.py"}:
        text = path.read_text(encoding="utf-8")
        for word in ("do_bench", "capturing", "Event(", "synchronize", "AUTOTUNE"):
            assert word not in text, path


@pytest.mark.parametrize(("arch", "known"), [(80, 80), (86, 80), (90, 90), (103, 100), (120, 100)])
def test_newer_gpus_stand_for_the_nearest_older_one(arch, known):
    assert tiles.generation(arch) == known


# ---- the cost


TILE = Tile(128, 128, 64, 8, 3)


def test_a_second_wave_costs_more_than_a_full_one():
    assert resident(product(), TILE) == 2

    def of(programs):
        each = product(results=programs, rows=128, columns=128, run=64)
        return cost(each, Choice(TILE)), waves(each, Choice(TILE))

    assert of(264)[1] == 1 and of(265)[1] > 1
    assert of(265)[0] > of(264)[0] > of(132)[0] > of(1)[0]


def test_large_tiles_load_less():
    each = product(results=1000)
    small, large = (Choice(Tile(*sizes, 64, 8, 4)) for sizes in ((128, 128), (256, 128)))
    assert cost(each, large) < 0.85 * cost(each, small)


def test_splits_pay_for_their_partial_sums():
    few = product("wgrad", results=1, rows=128, columns=128, runs=1, run=10**6)
    assert cost(few, Choice(TILE, 64)) < cost(few, Choice(TILE, 8)) < cost(few, Choice(TILE))
    full = product("wgrad", results=132, rows=256, columns=128, runs=1, run=10**6)
    assert cost(full, Choice(TILE, 2)) > cost(full, Choice(TILE))


def test_what_does_not_fit_costs_everything():
    assert cost(product(), Choice(Tile(256, 128, 64, 8, 8))) == float("inf")
