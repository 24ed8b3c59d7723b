"""bench/gpu/tiles_report.py: the GEMMs of a step, and what is printed of their times."""

from __future__ import annotations

import pytest
import torch

from bench.gpu import aot, tiles_report
from fastunit import config
from fastunit.common import cli
from fastunit.kernels.common import runtime
from fastunit.kernels.conv import tiles
from fastunit.kernels.conv.tile_costs import cost

SMALL = [*aot.SIZES, "crop_image_height=64", "crop_image_width=64", "gen.dim=16", "dis.dim=16"]
PRODUCTS = {"conv_gemm_kernel", "wgrad_kernel"}


@pytest.fixture(scope="module")
def found():
    return tiles_report.gemms(config.load("photos", SMALL), 90)


def test_every_gemm_of_a_step_is_found(found, monkeypatch):
    """Products of lines of pixels have one tile, whatever they cost."""
    lines, for_lines = [], tiles.for_lines
    monkeypatch.setattr(tiles, "for_lines", lambda *args: lines.append(args) or for_lines(*args))
    launches = aot.step_launches(config.load("photos", SMALL), 90, torch.bfloat16)
    wanted = [launch for launch in launches if launch.kernel.fn.__name__ in PRODUCTS]
    assert sum(call.launches for call in found.values()) == len(wanted) - len(lines)


def test_the_page_has_a_row_for_each_and_the_sums(found):
    lines = tiles_report.page(found)
    assert len(lines) == 2 + len(found) + 2
    assert lines[-1].startswith("Modelled ms of a step: conv_gemm ")


def test_calls_can_be_repeated_with_another_tile(found):
    product, call = next((p, c) for p, c in found.items() if len(tiles.candidates(p)) > 1)
    arguments = [tiles_report.Blank.filled(a, torch.device("cpu")) for a in call.arguments]
    for choice in tiles.candidates(product):
        with tiles_report.forced(choice), runtime.recorded_launches(90) as launches:
            call.function(*arguments)
        assert launches[-1].constexprs["BLOCK_N"] == choice.tile.block_n
        assert launches[-1].num_warps == choice.tile.num_warps


def test_faster_tiles_are_printed_as_entries(found):
    product = next(p for p in found if len(tiles.candidates(p)) > 1)
    chosen = tiles.best(product)
    other = next(choice for choice in tiles.candidates(product) if choice != chosen)
    assert len(tiles_report.entries({product: {chosen: 10.0, other: 9.9}})) == 4
    lines = tiles_report.entries({product: {chosen: 10.0, other: 5.0}})
    names = {each.__name__: each for each in (type(product), type(chosen), type(chosen.tile))}
    measured = eval("{" + "\n".join(lines[2:-2]) + "\n}", names)
    assert measured == {product: other}
    assert "5.0 us, not 10.0" in lines[2] and cost(product, other) >= cost(product, chosen)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_times_need_a_gpu(capsys):
    assert cli.guard(lambda: tiles_report.main(["--time"])) == 2
    assert capsys.readouterr().err.count("\n") == 1
