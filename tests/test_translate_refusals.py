"""What fastunit.translate refuses: bad images one by one, wrong arguments, harm to an input."""

from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastunit.common.errors import DataError
from fastunit.data import decoding
from fastunit.data.picture import Picture
from fastunit.inference.translator import Translator
from fastunit.translate import main
from tests.support.files import cut, flip_byte, tree, with_nan


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((16, 16 + len(file.parts))).save(file)


def translate(*words: object) -> int:
    return main([*map(str, words), "--direction", "a2b", "--device", "cpu"])


# ---- images that cannot be translated


def truncated(path: Path) -> None:
    put(path)
    cut(path)


def flipped(path: Path) -> None:
    put(path)
    flip_byte(path, path.read_bytes().index(b"IDAT") + 8)


def other_format(path: Path) -> None:
    put(path.with_suffix(".gif"))
    path.with_suffix(".gif").rename(path)


BAD = {
    "zero.png": (Path.touch, "empty: zero bytes"),
    "text.jpg": (lambda path: path.write_text("no image\n" * 99), "not an image"),
    "cut.jpg": (truncated, "damaged or truncated"),
    "cut.png": (truncated, "damaged or truncated"),
    "cut.bmp": (truncated, "damaged or truncated"),
    "cut.tif": (truncated, "damaged or truncated"),
    "cut.webp": (truncated, "damaged or truncated"),
    "flipped.png": (flipped, "damaged or truncated"),
    "gif.png": (other_format, "not an image"),
    "loop.png": (lambda path: path.symlink_to(path), "symbolic links"),
    "dangling.png": (lambda path: path.symlink_to("nowhere"), "a link to a file"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "wide.tif": (
        lambda path: Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(path),
        "32-bit or signed integers",
    ),
    "huge.bmp": (
        lambda path: path.write_bytes(
            b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\0\0\1\0" * 2 + b"\1\0\x18\0" + bytes(24)
        ),
        "too large",
    ),
}


def test_bad_images_are_listed_at_the_end_and_the_others_done(tmp_path, model, capsys):
    put(tmp_path / "in/a.png", tmp_path / "in/sub/z.png")
    for name, (make, _) in BAD.items():
        make(tmp_path / "in/sub" / name)
    assert translate(model, tmp_path / "in", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    listed = err[err.index(f"{len(BAD)} images could not be translated:") :]
    for name, (_, reason) in BAD.items():
        (line,) = (line for line in listed.splitlines() if f"/{name}:" in line)
        assert line.startswith(f"  {tmp_path / 'in/sub' / name}: ") and reason in line
    assert out.startswith(f"translated 2 of {2 + len(BAD)} images")
    assert sorted(tree(tmp_path / "out")) == ["a.png", "sub", "sub/z.png"]


def test_an_image_without_permission(tmp_path, model, monkeypatch, capsys):
    put(tmp_path / "in/a.png", tmp_path / "in/secret.png")
    secret, read = tmp_path / "in/secret.png", decoding.picture
    secret.chmod(0)
    if os.access(secret, os.R_OK):  # root reads everything: do as the kernel does for others

        def refuse(file: Path, *words: object) -> Picture:
            if file == secret:
                raise DataError("Permission denied")
            return read(file, *words)

        monkeypatch.setattr(decoding, "picture", refuse)
    assert translate(model, tmp_path / "in", tmp_path / "out") == 1
    assert f"{secret}: Permission denied" in capsys.readouterr().err
    assert (tmp_path / "out/a.png").is_file()


def failing(batches: list[int], most: int, error: Exception):
    """Return a Translator.translate that fails above `most` images and records batches."""
    own = Translator.translate

    def translate(self, x, direction, **options):
        batches.append(len(x))
        if len(x) > most:
            raise error
        return own(self, x, direction, **options)

    return translate


SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA"),
    RuntimeError("... can't allocate memory: x"),
]


@pytest.mark.parametrize("error", SHORT, ids=["python", "gpu", "cpu"])
def test_batches_are_halved_where_memory_is_short(tmp_path, model, monkeypatch, capsys, error):
    put(*(tmp_path / f"in/{i}.png" for i in range(5)))
    batches: list[int] = []
    monkeypatch.setattr(Translator, "translate", failing(batches, 1, error))
    assert translate(model, tmp_path / "in", tmp_path / "out") == 0
    assert batches == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    monkeypatch.setattr(Translator, "translate", failing(batches, 0, error))
    assert translate(model, tmp_path / "in", tmp_path / "none") == 1
    assert "in/3.png: cpu has too little memory for" in capsys.readouterr().err


def test_a_bomb_does_not_stop_the_others(tmp_path, model, capsys):
    put(tmp_path / "in/a.png", tmp_path / "in/c.png")
    data = bytearray((tmp_path / "in/a.png").read_bytes())
    data[16:24] = struct.pack(">II", 13000, 13000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "in/b.png").write_bytes(data)
    assert translate(model, tmp_path / "in", tmp_path / "out") == 1
    assert "in/b.png: too large: 13000x13000 pixels" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert translate(model, tmp_path / "in", tmp_path / "few", "--max-pixels", "2") == 1


def test_names_of_250_bytes_and_none_of_utf_8(tmp_path, model, capsys):
    names = ["n" * 246 + ".png", "写" * 82 + ".png", os.fsdecode(b"caf\xe9\x1b[31m.png")]
    put(*(tmp_path / "in" / name for name in names))
    assert translate(model, tmp_path / "in", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    for name in names[2:]:
        assert translate(model, tmp_path / "in" / name, tmp_path / "out" / name) == 0
        assert "caf\\xe9\\x1b[31m.png" in capsys.readouterr().out


def test_black_images_of_huge_weights_are_not_written(tmp_path, model, capsys):
    state = torch.load(model, weights_only=True)
    for name, value in state["unit"].items():
        if name.endswith("weight"):
            value.fill_(1e30)
    torch.save(state | {"sealed": False}, tmp_path / "huge.pt")
    put(tmp_path / "a.png")
    assert translate(tmp_path / "huge.pt", tmp_path / "a.png", tmp_path / "b.png") == 2
    assert "beyond 1e+09" in capsys.readouterr().err and not (tmp_path / "b.png").exists()


def test_a_single_bad_image(tmp_path, model, capsys):
    (tmp_path / "zero.png").touch()
    assert translate(model, tmp_path / "zero.png", tmp_path / "y.png") == 1
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'zero.png'}: empty" in err
    assert out.startswith("translated 0 of 1 images") and not (tmp_path / "y.png").exists()


def test_a_size_that_the_output_format_cannot_hold(tmp_path, model, capsys):
    Image.new("RGB", (16384, 1)).save(tmp_path / "x.png")
    assert translate(model, tmp_path / "x.png", tmp_path / "y.webp") == 1
    assert "x.png: 16384x1 pixels cannot be written as .webp" in capsys.readouterr().err


# ---- arguments


def damaged(tmp_path: Path, model: Path) -> Path:
    path = Path(shutil.copy(model, tmp_path / "damaged.pt"))
    flip_byte(path)
    return path


def lone_release(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "lone").mkdir()
    return Path(shutil.copy(model.with_name("gen_00000001.pt"), tmp_path / "lone"))


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


# Each: what to run, given a folder and a good checkpoint, and what the message must say.
WRONG = {
    "no input": (lambda t, m: (m, t / "nowhere", t / "out"), "INPUT .*/nowhere is neither"),
    "empty input": (lambda t, m: (m, empty_folder(t), t / "out"), "/empty holds no images"),
    "no checkpoint": (lambda t, m: (t / "no.pt", t / "in", t / "out"), "no checkpoint .*/no.pt"),
    "no image format": (lambda t, m: (m, t / "in/x.png", t / "y.gif"), "name of .*/y.gif"),
    "no extension": (lambda t, m: (m, t / "in/x.png", t / "out"), "existing folder or end in"),
    "output a file": (lambda t, m: (m, t / "in", t / "note.txt"), "OUTPUT .*/note.txt is a file"),
    "folder without a run": (lambda t, m: (t / "in", t / "in", t / "out"), "/in has no checkpoint"),
    "checkpoint of text": (lambda t, m: (t / "note.txt", t / "in", t / "out"), "note.txt is dam"),
    "damaged checkpoint": (lambda t, m: (damaged(t, m), t / "in", t / "out"), "damaged.pt is dam"),
    "NaN": (lambda t, m: (with_nan(m, t), t / "in", t / "out"), "values that are not finite"),
    "no config": (lambda t, m: (lone_release(t, m), t / "in", t / "out"), "gen_0.*--config"),
    "discriminators": (
        lambda t, m: (m.with_name("dis_00000001.pt"), t / "in", t / "out", "--config", t / "c.yml"),
        "dis_00000001.pt holds dis networks",
    ),
    "absent config": (
        lambda t, m: (m, t / "in", t / "out", "--config", t / "absent.yaml"),
        "cannot read .*/absent.yaml",
    ),
    "config of its own": (
        lambda t, m: (m, t / "in", t / "out", "--config", t / "c.yml"),
        "00000001.pt has its own configuration; leave out config",
    ),
    "device": (lambda t, m: (m, t / "in", t / "out", "--device", "gpu"), "--device gpu must be"),
}


def refusal(arguments: Sequence[object], folder: Path, capsys: pytest.CaptureFixture) -> str:
    """Return the one message of a command that must fail and change nothing in `folder`."""
    before = tree(folder)
    assert main([*map(str, arguments), "--direction", "a2b"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert tree(folder) == before
    return line


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_one_message_and_write_nothing(tmp_path, model, capsys, words, message):
    put(tmp_path / "in/x.png")
    (tmp_path / "note.txt").write_text("not yours")
    (tmp_path / "c.yml").write_text("max_iter: 1\n")
    arguments = words(tmp_path, model)
    options = () if "--device" in arguments else ("--device", "cpu")
    assert re.search(message, refusal([*arguments, *options], tmp_path, capsys))


def test_networks_of_four_channels_are_refused(tmp_path, save_networks, capsys):
    put(tmp_path / "in/x.png")
    wide = save_networks(tmp_path / "run", input_dim_b=4)
    arguments = [wide, tmp_path / "in", tmp_path / "out", "--device", "cpu"]
    assert "x.png: .png cannot hold 4 channels; choose" in refusal(arguments, tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--direction", "c2d"], "'c2d'"),
        ([], "--direction"),
        (["--direction", "a2b", "--batch-size", "0"], "'0' must be a whole number of at least 1"),
        (["--direction", "a2b", "--batch-size", "two"], "'two' must be a whole number"),
    ],
)
def test_wrong_options_exit_with_2(tmp_path, model, capsys, options, message):
    put(tmp_path / "x.png")
    with pytest.raises(SystemExit) as exit_:
        main([str(model), str(tmp_path / "x.png"), str(tmp_path / "y.png"), *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "y.png").exists()


# ---- inputs are never overwritten


def link(path: Path, to: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
    return path


def hard(path: Path, to: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(to)
    return path


# Each lays its links, given the folder with in/x.png and in/in/x.png, and names INPUT and OUTPUT.
HARMFUL = {
    "folder onto itself": lambda t: (t / "in", t / "in"),
    "folder onto itself by ..": lambda t: (t / "in", t / "in/in/.."),
    "folder onto itself by a link": lambda t: (t / "in", link(t / "out", t / "in")),
    "linked folder onto its target": lambda t: (link(t / "src", t / "in"), t / "in"),
    "folder into itself": lambda t: (t / "in", t / "in/new"),
    "folder into itself by a link": lambda t: (t / "in", link(t / "l", t / "in/in") / "new"),
    "folder onto its parent": lambda t: (
        hard(t / "in/in/in/x.png", t / "in/x.png").parents[1],
        t / "in",
    ),
    "into itself through a linked subfolder of the output": lambda t: (
        t / "in",
        link(t / "out/in", t / "in/new").parent,
    ),
    "onto a folder that the input links to": lambda t: (
        link(t / "src/l", t / "in").parent,
        link(t / "out/l", t / "in").parent,
    ),
    "linked input": lambda t: (link(t / "src/x.png", t / "in/x.png").parent, t / "in"),
    "linked output": lambda t: (t / "in", link(t / "out/x.png", t / "in/x.png").parent),
    "hard link": lambda t: (t / "in", hard(t / "out/x.png", t / "in/in/x.png").parent),
    "file onto itself": lambda t: (t / "in/x.png", t / "in/x.png"),
    "file onto itself by ..": lambda t: (t / "in/x.png", t / "in/in/../x.png"),
    "file into its folder": lambda t: (t / "in/x.png", t / "in"),
    "file onto its link": lambda t: (t / "in/x.png", link(t / "y.png", t / "in/x.png")),
    "link onto its file": lambda t: (link(t / "y.png", t / "in/x.png"), t / "in/x.png"),
    "file onto its hard link": lambda t: (t / "in/x.png", hard(t / "y.png", t / "in/x.png")),
}


@pytest.mark.parametrize("lay", HARMFUL.values(), ids=HARMFUL.keys())
def test_an_input_is_never_overwritten(tmp_path, model, capsys, lay):
    put(tmp_path / "in/x.png", tmp_path / "in/in/x.png")
    source, output = lay(tmp_path)
    before = tree(tmp_path)
    assert translate(model, source, output) == 2
    error = capsys.readouterr().err
    assert "error: the " in error and "choose " in error and str(output) in error
    assert tree(tmp_path) == before


def test_a_neighbour_of_the_input_is_no_harm(tmp_path, model):
    put(tmp_path / "in/x.png")
    before = tree(tmp_path / "in")
    assert translate(model, tmp_path / "in", tmp_path / "in2") == 0
    assert translate(model, tmp_path / "in/x.png", tmp_path / "in/y.png") == 0
    assert tree(tmp_path / "in") == {**before, "y.png": (tmp_path / "in2/x.png").read_bytes()}
