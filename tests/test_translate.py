"""python -m fastunit.translate: the network's own values, any size, and inputs left alone."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit import config
from fastunit.data import decoding, image_io
from fastunit.models.domain_pair import GeneratorPair
from fastunit.training import checkpoint
from fastunit.translate import main
from tests.support.doubles import raising
from tests.support.files import tree
from tests.support.processes import python

SIZES = [(33, 47), (1, 1), (5, 200), (32, 32)]  # height, width


def draw(height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def put(*files: Path, size: tuple[int, int] = (8, 8)) -> None:
    for file in files:
        image_io.write(draw(*size), file)


def translate(*words: object, direction: str = "a2b") -> int:
    return main([*map(str, words), "--direction", direction, "--device", "cpu"])


def by_network(model: Path, image: np.ndarray, direction: str) -> np.ndarray:
    """Translate uint8 [H, W, C] by calling the network itself."""
    pair, _ = checkpoint.load_generators(model)
    x = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        y = pair.translate(x, direction)[0].permute(1, 2, 0).numpy()
    return np.rint((y + 1) * 127.5).astype(np.uint8)


# ---- what comes out


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_a_folder_is_translated_as_the_network_does(tmp_path, model, direction, capsys):
    for height, width in SIZES:
        put(tmp_path / f"in/{height}/deep/x{width}.png", size=(height, width))
    assert translate(model, tmp_path / "in", tmp_path / "new/out", direction=direction) == 0
    assert tree(tmp_path / "new/out").keys() == tree(tmp_path / "in").keys()
    for height, width in SIZES:
        found = image_io.read(tmp_path / f"new/out/{height}/deep/x{width}.png", 3).astype(int)
        expected = by_network(model, draw(height, width), direction)
        assert found.shape == (height, width, 3)
        assert np.abs(found - expected).max() <= 1  # channels_last may round the other way
        assert (found == expected).mean() > 0.99
    (last,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"translated 4 of 4 images {direction} in [\d.]+ s \([\d.]+ images/s\) to "
        + re.escape(str(tmp_path / "new/out")),
        last,
    )


def test_the_two_directions_differ(model):
    assert (by_network(model, draw(), "a2b") != by_network(model, draw(), "b2a")).mean() > 0.5


def test_every_extension_is_kept_and_is_the_format(tmp_path, model):
    names = ["a.jpg", "b.JPEG", "c.png", "d.bmp", "e.tif", "f.tiff", "g.WebP"]
    formats = ["JPEG", "JPEG", "PNG", "BMP", "TIFF", "TIFF", "WEBP"]
    put(*(tmp_path / "in" / name for name in names), size=(16, 16))
    assert translate(model, tmp_path / "in", tmp_path / "out") == 0
    for name, kind in zip(names, formats, strict=True):
        with Image.open(tmp_path / "out" / name) as image:
            assert (image.format, image.size) == (kind, (16, 16))
        source = image_io.read(tmp_path / "in" / name, 3)
        difference = image_io.read(tmp_path / "out" / name, 3) - by_network(
            model, source, "a2b"
        ).astype(float)
        assert np.abs(difference).mean() < (4 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize(("direction", "modes"), [("a2b", ("RGB", "L")), ("b2a", ("L", "RGB"))])
def test_channels_are_those_trained_whatever_comes_in(tmp_path, save_networks, direction, modes):
    model = save_networks(tmp_path / "run", input_dim_b=1)
    put(tmp_path / "in/colour.png")
    image_io.write(draw(channels=1), tmp_path / "in/gray.png")
    Image.fromarray(draw()[..., 0].astype(np.uint16) * 257).save(tmp_path / "in/deep.png")
    Image.fromarray(draw()).convert("CMYK").save(tmp_path / "in/print.tif")
    assert translate(model, tmp_path / "in", tmp_path / "out", direction=direction) == 0
    for name in ("colour.png", "gray.png", "deep.png", "print.tif"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.mode == modes[1]
        source = image_io.read(tmp_path / "in" / name, len(modes[0]))
        expected = by_network(model, source, direction)
        found = image_io.read(tmp_path / "out" / name, len(modes[1]))
        assert np.abs(found - expected.astype(int)).max() <= 1


def test_the_size_is_that_of_the_upright_picture(tmp_path, model):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(draw(33, 47)).save(tmp_path / "in.png", exif=exif)
    assert translate(model, tmp_path / "in.png", tmp_path / "out.png") == 0
    expected = by_network(model, np.rot90(draw(33, 47), -1).copy(), "a2b")
    found = image_io.read(tmp_path / "out.png", 3)
    assert found.shape == (47, 33, 3)
    assert np.abs(found - expected.astype(int)).max() <= 1


def test_consecutive_images_of_one_size_share_a_batch(tmp_path, model, monkeypatch):
    shapes, own = [], GeneratorPair.translate

    def spy(self: GeneratorPair, x: torch.Tensor, direction: str) -> torch.Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.is_inference_mode_enabled() and not self.training
        shapes.append(tuple(x.shape))
        return own(self, x, direction)

    monkeypatch.setattr(GeneratorPair, "translate", spy)
    put(*(tmp_path / f"in/{n}.png" for n in (0, 1, 2, 4, 5)))
    put(tmp_path / "in/3.png", size=(8, 12))
    assert translate(model, tmp_path / "in", tmp_path / "out", "--batch-size", 2) == 0
    assert shapes == [(2, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 12), (2, 3, 8, 8)]
    assert sorted(tree(tmp_path / "out")) == [f"{n}.png" for n in range(6)]


# ---- where it goes


def test_a_file_goes_into_an_existing_folder_under_its_name(tmp_path, model, capsys):
    put(tmp_path / "x.bmp")
    (tmp_path / "out").mkdir()
    assert translate(model, tmp_path / "x.bmp", tmp_path / "out") == 0
    assert list(tree(tmp_path / "out")) == ["x.bmp"]
    assert capsys.readouterr().out.endswith(f"to {tmp_path / 'out/x.bmp'}\n")


def test_a_file_goes_to_a_name_in_the_format_of_its_extension(tmp_path, model):
    put(tmp_path / "x.png")
    assert translate(model, tmp_path / "x.png", tmp_path / "new/y.webp") == 0
    with Image.open(tmp_path / "new/y.webp") as image:
        assert image.format == "WEBP"


def test_an_earlier_output_is_replaced(tmp_path, model):
    put(tmp_path / "in/x.png", tmp_path / "y.png")
    assert translate(model, tmp_path / "in", tmp_path / "out") == 0
    first = tree(tmp_path / "out")
    assert translate(model, tmp_path / "in", tmp_path / "out", direction="b2a") == 0
    assert tree(tmp_path / "out") != first
    assert list(tree(tmp_path / "out")) == ["x.png"]


@pytest.mark.parametrize("source", ["run", "release", "release with --config"])
def test_other_checkpoints_give_the_same(tmp_path, model, source):
    put(tmp_path / "x.png")
    (tmp_path / "lone").mkdir()
    lone = tmp_path / "lone/gen_00000001.pt"
    lone.write_bytes(model.with_name(lone.name).read_bytes())
    settings = tmp_path / ("my.yaml" if "--config" in source else "lone/config.yaml")
    settings.write_text(config.dump_yaml(checkpoint.load_generators(model)[1]))
    words = [model.parents[1] if source == "run" else lone]
    words += ["--config", settings] if "--config" in source else []
    assert translate(*words, tmp_path / "x.png", tmp_path / "out.png") == 0
    assert translate(model, tmp_path / "x.png", tmp_path / "reference.png") == 0
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "reference.png").read_bytes()


# ---- what stops it half-way


def test_a_full_disk_stops_and_keeps_the_old_output(tmp_path, model, monkeypatch, capsys):
    put(tmp_path / "in/x.png", tmp_path / "out/x.png")
    (tmp_path / "in/zero.png").touch()
    before = tree(tmp_path / "out")

    def full(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    assert translate(model, tmp_path / "in", tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert f"error: cannot write {tmp_path / 'out/x.png'}: No space left" in error
    assert "zero.png: empty" in error
    assert tree(tmp_path / "out") == before


def test_a_failing_network_is_not_taken_for_a_bad_image(tmp_path, model, monkeypatch):
    put(tmp_path / "x.png")
    monkeypatch.setattr(GeneratorPair, "translate", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        translate(model, tmp_path / "x.png", tmp_path / "y.png")


def test_ctrl_c_ends_with_130(tmp_path, model, monkeypatch):
    put(tmp_path / "x.png")
    monkeypatch.setattr(GeneratorPair, "translate", raising(KeyboardInterrupt()))
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png") == 130
    assert not (tmp_path / "y.png").exists()


def test_ctrl_c_is_not_kept_waiting_by_a_file(tmp_path, model, monkeypatch):
    """One whose decoding takes `data.max_seconds`, as a dead mount makes it."""
    put(tmp_path / "x.png")
    decoding.stop()
    decoding.measure(tmp_path / "x.png", image_io.Reading())
    (worker,) = decoding._idle
    begun, picture = [], decoding.picture

    def stuck(*arguments):
        os.kill(worker._process.pid, signal.SIGSTOP)
        begun.append(time.monotonic())
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return picture(*arguments)

    monkeypatch.setattr(decoding, "picture", stuck)
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png") == 130
    assert time.monotonic() - begun[0] < 5 and not (tmp_path / "y.png").exists()


def test_the_command_shows_no_traceback(tmp_path, model):
    put(tmp_path / "in/x.png")
    (tmp_path / "in/zero.png").touch()
    command = ["-m", "fastunit.translate", model, tmp_path / "in"]
    options = ["--direction", "a2b", "--device", "cpu"]
    some, none = (python(*command, tmp_path / output, *options) for output in ("out", "in"))
    assert (some.returncode, none.returncode) == (1, 2)
    assert f"{tmp_path / 'in/zero.png'}: empty: zero bytes" in some.stderr
    assert some.stdout.startswith("translated 1 of 2 images a2b")
    assert none.stderr.startswith("error: ") and none.stdout == ""
    assert "Traceback" not in some.stderr + none.stderr


# ---- how it is computed


def test_a_precision_changes_the_last_bits_alone(tmp_path, model):
    put(tmp_path / "x.png", size=(32, 32))
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.png"
        assert translate(model, tmp_path / "x.png", out, "--precision", precision) == 0
    exact, rounded = (image_io.read(tmp_path / f"{p}.png", 3).astype(int) for p in ("fp32", "bf16"))
    assert (exact == by_network(model, draw(32, 32), "a2b")).mean() > 0.99
    difference = np.abs(exact - rounded)
    assert 0 < difference.mean() < 3


def test_a_precision_that_the_device_has_not_is_refused(tmp_path, model, capsys):
    put(tmp_path / "x.png")
    out = tmp_path / "out.png"
    assert translate(model, tmp_path / "x.png", out, "--precision", "tf32") == 2
    assert "precision=tf32 needs an NVIDIA GPU" in capsys.readouterr().err
    assert not out.exists()


# ---- another size and format


@pytest.mark.parametrize(("height", "width", "shape"), [(40, 60, (20, 30)), (31, 9, (69, 20))])
def test_images_are_resized_to_a_shorter_side_first(tmp_path, model, height, width, shape):
    put(tmp_path / "in.png", size=(height, width))
    assert translate(model, tmp_path / "in.png", tmp_path / "out.png", "--size", 20) == 0
    with Image.open(tmp_path / "in.png") as image:
        small = np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR))
    wanted = by_network(model, small, "a2b").astype(int)
    assert np.abs(image_io.read(tmp_path / "out.png", 3) - wanted).max() <= 1


def test_a_folder_is_written_in_another_format(tmp_path, model, capsys):
    put(tmp_path / "in/a.png", tmp_path / "in/deep/b.bmp")
    assert translate(model, tmp_path / "in", tmp_path / "out", "--format", "webp") == 0
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"a.webp", "deep/b.webp"}
    put(tmp_path / "in/a.bmp")
    assert translate(model, tmp_path / "in", tmp_path / "new", "--format", "png") == 2
    assert "would both become" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_file_of_another_extension_than_the_format_is_refused(tmp_path, model, capsys):
    put(tmp_path / "in.png")
    assert translate(model, tmp_path / "in.png", tmp_path / "x.bmp", "--format", "png") == 2
    assert "must end in .png, as --format says" in capsys.readouterr().err
    assert not (tmp_path / "x.bmp").exists()
