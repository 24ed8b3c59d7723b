"""Large images in strips, and batches, by the memory that there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit import config
from fastunit.common import devices
from fastunit.common.errors import UserError
from fastunit.data import image_io
from fastunit.inference.memory import MARGIN, SHARE, Memory
from fastunit.models.domain_pair import GeneratorPair
from fastunit.models.levels import FileLevel
from fastunit.models.strips import STRIP, Strips
from fastunit.models.unit import networks
from fastunit.translate import main
from tests.support.processes import python

CPU = torch.device("cpu")
# Prints the growth of the process and the forecast in bytes, of an image in the given memory.
PEAK = """
import sys
import torch
from fastunit import Translator, config
from fastunit.common.devices import proc_bytes
from fastunit.models.unit import networks

torch.manual_seed(0)
settings = config.from_dict({"gen": {"dim": 16}})
pair = networks(settings).generator_pair()
small = torch.zeros(3, 64, 64, dtype=torch.uint8)
limit = int(sys.argv[1]) if len(sys.argv) > 1 else None
Translator(pair, settings, device="cpu").translate(small, "a2b", tile=16)
expected = Translator(pair, settings, device="cpu").memory.whole_bytes("a2b", 1024, 1024)
before = proc_bytes("/proc/self/status", "VmRSS")
translator = Translator(pair, settings, device="cpu", memory=limit and before + limit)
y = translator.translate(torch.zeros(3, 1024, 1024, dtype=torch.uint8), "a2b")
assert tuple(y.shape) == (3, 1024, 1024)
print(proc_bytes("/proc/self/status", "VmHWM") - before, expected)
"""


def growth(**env: str) -> tuple[int, int]:
    ran = python("-c", PEAK, env=env)
    assert ran.returncode == 0, ran.stderr
    grown, expected = map(int, ran.stdout.split())
    return grown, expected


def test_the_forecast_is_what_a_whole_image_takes():
    """With every layer in pages of its own: glibc's heap keeps some freed ones, or none, by run."""
    grown, expected = growth(MALLOC_MMAP_THRESHOLD_="65536")
    assert grown == pytest.approx(expected, rel=0.05)


def test_the_margin_covers_what_the_heap_keeps():
    grown, expected = growth()
    assert grown < MARGIN * expected


def test_an_image_beyond_the_memory_stays_within_it():
    limit = 60 * 2**20
    ran = python("-c", PEAK, limit)
    assert ran.returncode == 0, ran.stderr
    grown, whole = map(int, ran.stdout.split())
    assert grown < limit < whole


@pytest.fixture
def translator(model: Path) -> fastunit.Translator:
    return fastunit.load(model, device="cpu")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def test_every_kind_of_input_in_strips(translator):
    x = draw(2, 61, 37, 3)
    whole = translator.translate(x, "a2b", tile="off").astype(int)
    found = translator.translate(x, "a2b", tile=8)
    assert np.abs(found - whole).max() <= 1 and (found == whole).mean() > 0.99
    image = translator.translate(Image.fromarray(x[0]), "a2b", tile=8)
    assert np.array_equal(np.asarray(image), found[0])
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(
        translator.translate(tensor, "a2b", tile=8),
        translator.translate(tensor, "a2b", tile="off"),
        rtol=0,
        atol=1e-5,
    )


def test_strips_are_not_used_for_gradients_nor_where_all_fits(translator, monkeypatch):
    monkeypatch.setattr(Strips, "translate", lambda *_, **__: pytest.fail("strips"))
    x = torch.rand(3, 16, 16, requires_grad=True)
    translator.translate(x, "a2b", grad=True, tile=4).sum().backward()
    for tile in ("off", "auto"):
        translator.translate(draw(16, 16, 3), "a2b", tile=tile)


@pytest.mark.parametrize("tile", [0, -1, "all", 1.5, True])
def test_wrong_tiles_are_refused(translator, tile):
    with pytest.raises(UserError, match=f"tile={tile!r} must be auto, off or a number of rows"):
        translator.translate(draw(9, 13, 3), "a2b", tile=tile)


def test_networks_that_cannot_run_in_strips_say_so():
    settings = config.from_dict({"gen": {"dim": 4, "n_res": 1, "activ": "prelu"}})
    translator = fastunit.Translator(networks(settings).generator_pair(), settings, device="cpu")
    translator.translate(draw(9, 13, 3), "a2b")
    with pytest.raises(UserError, match="PReLU or replaced modules, translate whole images only"):
        translator.translate(draw(9, 13, 3), "a2b", tile=4)


def test_memory_decides_how_many_images_fit_and_where_layers_are_kept(monkeypatch):
    settings = config.from_dict({"gen": {"dim": 8, "n_res": 1}})
    memory = Memory(networks(settings).generator_pair(), CPU, "fp32", None)
    need = memory.whole_bytes("a2b", 1000, 1000)
    assert need > memory.strips("a2b").kept_bytes(1000, 1000, 4) > need / 16
    for free, images in ((0.1, 0), (0.9, 0), (1.5, 1), (2.5, 2)):
        monkeypatch.setattr(
            devices, "free_memory", lambda _, free=free: int(free * need * MARGIN / SHARE)
        )
        assert memory.images("a2b", 1000, 1000) == images
    assert memory.keeps_in_files("a2b", 1000, 1000)
    monkeypatch.setattr(devices, "free_memory", lambda _: (36 * 2**20 + 48 * 2**20) / SHARE)
    assert memory.strip_values("a2b", 1000, 1000) == 2**20  # nine copies in float32, and 48 MiB
    monkeypatch.setattr(devices, "free_memory", lambda _: 2**40)
    assert memory.images("a2b", 1000, 1000) == 64
    assert not memory.keeps_in_files("a2b", 1000, 1000)
    assert memory.strip_values("a2b", 1000, 1000) == STRIP


def test_free_memory_is_within_the_control_groups_limit(tmp_path, monkeypatch):
    free = devices.proc_bytes("/proc/meminfo", "MemAvailable")
    assert 0 < devices.free_memory(CPU) <= free + 2**30
    monkeypatch.setattr(devices, "_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert devices.free_memory(CPU) > 1000
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 600\nactive_file 50\n")
    assert devices.free_memory(CPU) == 4600


# ---- the command line


def translate(*words: object) -> int:
    return main([*map(str, words), "--direction", "a2b", "--device", "cpu"])


def test_a_file_in_tiles_is_as_without(tmp_path, model, monkeypatch):
    image_io.write(draw(61, 37, 3), tmp_path / "x.png")
    assert translate(model, tmp_path / "x.png", tmp_path / "whole.png") == 0
    monkeypatch.setattr(GeneratorPair, "translate", lambda *_: pytest.fail("whole"))
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png", "--tile", 8) == 0
    # No memory is left for a whole image: strips, kept in files.
    assert translate(model, tmp_path / "x.png", tmp_path / "z.png", "--memory", 1e-6) == 0
    whole, *others = (image_io.read(tmp_path / f"{n}.png", 3).astype(int) for n in ("whole", *"yz"))
    for found in others:
        assert np.abs(found - whole).max() <= 1 and (found == whole).mean() > 0.99


def test_batches_are_as_large_as_memory_allows(tmp_path, model, monkeypatch):
    shapes, own = [], GeneratorPair.translate

    def spy(self: GeneratorPair, x: torch.Tensor, direction: str) -> torch.Tensor:
        shapes.append(len(x))
        return own(self, x, direction)

    monkeypatch.setattr(GeneratorPair, "translate", spy)
    monkeypatch.setattr(Memory, "images", lambda *_: 2)
    for name in range(5):
        image_io.write(draw(8, 8, 3), tmp_path / f"in/{name}.png")
    assert translate(model, tmp_path / "in", tmp_path / "out") == 0
    assert shapes == [2, 2, 1]


def test_a_full_disk_of_temporary_files_is_named(tmp_path, model, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    image_io.write(draw(61, 37, 3), tmp_path / "x.png")
    monkeypatch.setattr(FileLevel, "write", full)
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png", "--memory", 1e-6) == 3
    error = capsys.readouterr().err
    assert re.search("cannot keep the layers of a large picture in .*: No space left", error)
    assert "set TMPDIR" in error and not (tmp_path / "y.png").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tile", "0", "'0' must be a whole number of at least 1"),
        ("--tile", "all", "'all' must be a whole number"),
        ("--memory", "0", "'0' must be a number above 0"),
        ("--memory", "2G", "'2G' must be a number above 0"),
    ],
)
def test_wrong_options_are_refused(tmp_path, model, capsys, option, value, message):
    with pytest.raises(SystemExit):
        translate(model, tmp_path, tmp_path / "y", option, value)
    assert message in capsys.readouterr().err
