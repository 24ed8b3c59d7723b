"""Tile tables, and the store of autotuned winners."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fastunit.kernels.common import runtime
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tiles import Tile

# x's dtype, images, windows of each, channels out, run: layers of UNIT at 256x256.
LAYERS = [
    (torch.bfloat16, 1, 64 * 64, 256, 768),
    (torch.bfloat16, 8, 64 * 64, 256, 768),
    (torch.bfloat16, 1, 128 * 128, 128, 256),
    (torch.bfloat16, 1, 256 * 256, 64, 28),
    (torch.bfloat16, 1, 256 * 256, 3, 448),
    (torch.float32, 1, 64 * 64, 256, 768),
    (torch.bfloat16, 2, 1, 1, 16),
]
ARCHS = (80, 90, 100)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("layer", LAYERS)
def test_candidates_fit(layer, arch):
    dtype, images, windows, channels, run = layer
    x = torch.empty(0, dtype=dtype)
    columns = tiles.filter_columns(channels)
    with runtime.recorded_launches(arch):
        products = tiles.gemm_candidates(x, images, windows, channels, columns, run)
        gradients = tiles.wgrad_candidates(x, run, channels)
    for found in (products, gradients):
        assert 1 <= len(found) == len(set(found)) <= 12
        for tile in found:
            assert tile.bytes_of_stages(x.element_size()) <= tiles.SHARED_MEMORY[arch]
            assert tile.block_m >= 64  # a warp group's share of wgmma
    assert all(columns % tile.block_n == 0 for tile in products)


def test_few_programs_take_small_tiles():
    x = torch.empty(0, dtype=torch.bfloat16)
    with runtime.recorded_launches(90):
        one = tiles.gemm_candidates(x, 1, 64 * 64, 256, 256, 768)[0]
        eight = tiles.gemm_candidates(x, 8, 64 * 64, 256, 256, 768)[0]
    assert (one.block_m, one.block_n) == (64, 128)
    assert (eight.block_m, eight.block_n) == (128, 128)


@pytest.mark.parametrize(("arch", "table"), [(80, 80), (86, 80), (90, 90), (103, 100), (120, 100)])
def test_newer_gpus_take_the_nearest_older_table(arch, table):
    assert tiles.generation(arch) == table


def test_splits_fill_the_gpu_but_stay_long():
    x, far = torch.empty(0), 2**31
    with runtime.recorded_launches(90):
        assert tiles.split_pixels(x, 4096, 18, 64, far) == 512  # eight blocks, the shortest
        assert tiles.split_pixels(x, 10**6, 18, 64, far) * 15 >= 10**6
        assert tiles.split_pixels(x, 10**6, 1000, 64, far) >= 10**6
        assert tiles.split_pixels(x, 10, 1, 64, far) == 64
        assert tiles.split_pixels(x, 10**6, 1000, 64, 10_000) == 9984


TABLE, BETTER, HUGE = Tile(64, 64, 64, 4, 4), Tile(128, 64, 64, 4, 4), Tile(256, 256, 64, 8, 4)


@pytest.fixture
def store(monkeypatch, tmp_path):
    """Return a function that makes a store of a GPU that is faster with larger tiles."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    timed = []

    def time(run, tile):
        run(tile)
        timed.append(tile)
        return float("inf") if tile == HUGE else 1 / tile.block_m

    monkeypatch.setattr(tiles, "_time", time)
    return lambda: (tiles._Store("NVIDIA Test"), timed)


def test_the_fastest_is_kept_on_disk(store):
    first, timed = store()
    ran = []
    assert first.best(("layer", 1), [TABLE, BETTER, HUGE], ran.append) == BETTER
    assert ran == timed == [TABLE, BETTER, HUGE]
    assert first.best(("layer", 1), [TABLE, BETTER, HUGE], ran.append) == BETTER
    again, _ = store()
    assert again.best(("layer", 1), [TABLE, BETTER, HUGE], ran.append) == BETTER
    assert len(timed) == 3
    # A winner that is no candidate any more is not believed.
    assert again.best(("layer", 1), [TABLE], ran.append) == TABLE


def test_nothing_is_timed_without_a_gpu_or_when_told_not_to(monkeypatch):
    assert tiles.choose(("layer",), [TABLE, BETTER], pytest.fail, torch.empty(0)) == TABLE
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert tiles._is_tuned(torch.empty(0))
    monkeypatch.setenv("FASTUNIT_AUTOTUNE", "0")
    assert not tiles._is_tuned(torch.empty(0))


class Gpu:
    """A process on a GPU: what it launches, what is loaded, and whether a graph is captured."""

    def __init__(self, monkeypatch):
        self.loaded, self.capturing, self.devices = set(), False, []
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "device_of", self._guard)
        tiles._Store.of.cache_clear()

    @contextlib.contextmanager
    def _guard(self, x):
        self.devices.append(x)
        yield
        self.devices.pop()

    def run(self, tile):
        """Launch a kernel: its first launch loads it, which a capture forbids."""
        assert self.devices or tile in self.loaded, "timed without its device's guard"
        assert not (self.capturing and tile not in self.loaded), "loaded while capturing"
        self.loaded.add(tile)

    def layer(self, candidates=(TABLE, BETTER, HUGE), key=("layer", 1)):
        tile = tiles.choose(key, list(candidates), self.run, torch.empty(0))
        with self._guard(None):
            self.run(tile)
        return tile

    def step(self):
        """Warm up and capture; return the tiles of both."""
        self.capturing = False
        warm = self.layer()
        self.capturing = True
        return warm, self.layer()


@pytest.fixture
def gpu(monkeypatch, store):
    yield lambda: Gpu(monkeypatch)
    tiles._Store.of.cache_clear()


def test_a_captured_graph_takes_the_tuned_tile(gpu, store):
    assert gpu().step() == (BETTER, BETTER)
    assert store()[1] == [TABLE, BETTER, HUGE]  # timed once, before the capture


def test_a_second_process_loads_what_it_captures(gpu, store):
    gpu().step()
    timed = len(store()[1])
    second = gpu()
    assert second.step() == (BETTER, BETTER)
    assert second.loaded == {BETTER}
    assert len(store()[1]) == timed


def test_nothing_is_timed_while_a_graph_is_captured(gpu, store):
    process = gpu()
    process.loaded.add(TABLE)  # by a step that went by the table alone
    process.capturing = True
    assert process.layer() == TABLE
    assert not store()[1]
    process.capturing = False
    assert process.layer() == BETTER  # what a capture left out is made up for


def test_a_winner_that_is_no_candidate_is_not_captured(gpu):
    gpu().step()
    process = gpu()
    process.loaded.add(TABLE)
    process.capturing = True
    assert process.layer([TABLE, HUGE]) == TABLE


def test_the_table_alone_is_captured_when_told_so(gpu, store, monkeypatch):
    gpu().step()
    monkeypatch.setenv("FASTUNIT_AUTOTUNE", "0")
    assert gpu().step() == (TABLE, TABLE)
