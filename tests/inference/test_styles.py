"""Styles of MUNIT in Translator and python -m fastunit.translate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit.common.errors import DataError, UserError
from fastunit.data import image_io
from fastunit.translate import main
from tests.support.files import tree
from tests.support.munit import GEN

MUNIT = {"network": "munit", "gen": GEN, "share": {}}


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def munit(tmp_path_factory, save_networks) -> Path:
    return save_networks(tmp_path_factory.mktemp("munit"), **MUNIT)


@pytest.fixture(scope="module")
def translator(munit: Path) -> fastunit.Translator:
    return fastunit.load(munit, device="cpu")


def translate(*words: object) -> int:
    return main([*map(str, words), "--direction", "a2b", "--device", "cpu"])


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Require equal pixels, up to the rounding of a few."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1 and (found == wanted).mean() > 0.99


def test_a_style_is_that_of_all_images_or_of_its_own(translator):
    x = draw(2, 17, 20, 3)
    styles = translator.random_styles(2, seed=3)
    assert styles.shape == (2, 3)
    both = translator.translate(x, "a2b", style=styles)
    for image, style, found in zip(x, styles, both, strict=True):
        assert_near(translator.translate(image, "a2b", style=style), found)
    wanted = translator.translate(x, "a2b", style=styles[0])
    assert_near(wanted[0], both[0])
    assert np.abs(wanted[1].astype(int) - both[1]).max() > 5
    assert np.array_equal(
        translator.translate(x, "a2b"), translator.translate(x, "a2b", style=torch.zeros(3))
    )


def test_the_style_of_an_image_makes_its_reconstruction(translator):
    pair, x = translator.networks, draw(24, 16, 3)
    style = translator.style_of(x, "b")
    with torch.no_grad():
        given = torch.from_numpy(x.transpose(2, 0, 1)[None]).float() / 127.5 - 1
        content, own = pair.gen_b.encode(given)
        torch.testing.assert_close(style, own.flatten(1))
        wanted = pair.gen_b.decode(content, own)
        torch.testing.assert_close(pair.gen_b.decode(content, style), wanted)
    for other in (Image.fromarray(x), given, given[0]):
        torch.testing.assert_close(translator.style_of(other, "b"), style, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(translator.style_of(x, "a"), style)
    assert translator.translate(Image.fromarray(x), "a2b", style=style).size == (16, 24)


def test_pillow_images_of_a_domain_of_other_channels_are_refused_by_name(tmp_path, save_networks):
    translator = fastunit.load(save_networks(tmp_path, **MUNIT, input_dim_b=4), device="cpu")
    for image in (Image.new("RGBA", (16, 16)), Image.new("L", (16, 16)), Image.new("F", (16, 16))):
        with pytest.raises(
            DataError, match="the domain has 4 channels, but Pillow images are gray"
        ):
            translator.style_of(image, "b")
        assert translator.style_of(image, "a").shape == (1, 3)  # alpha is dropped
    assert translator.style_of(draw(16, 16, 4), "b").shape == (1, 3)


def test_gradients_reach_the_style(translator):
    style = torch.ones(1, 3, requires_grad=True)
    y = translator.translate(torch.rand(2, 3, 16, 16), "a2b", style=style, grad=True)
    (grad,) = torch.autograd.grad(y.sum(), style)
    assert grad.any()


def test_what_does_not_fit_is_refused(translator, model):
    x = draw(16, 16, 3)
    with pytest.raises(DataError, match=r"a style of shape \(4,\) does not fit; give \[3\] or"):
        translator.translate(x, "a2b", style=torch.zeros(4))
    with pytest.raises(DataError, match=r"shape \(2, 3\) does not fit; give \[3\] or \[1, 3\]"):
        translator.translate(x, "a2b", style=torch.zeros(2, 3))
    with pytest.raises(DataError, match="12x16 pixels is too small for a style code"):
        translator.style_of(x[:12], "a")
    with pytest.raises(UserError, match="domain='c' must be one of a, b"):
        translator.style_of(x, "c")
    unit = fastunit.load(model, device="cpu")
    for call in (
        lambda: unit.random_styles(1),
        lambda: unit.style_of(x, "a"),
        lambda: unit.translate(x, "a2b", style=torch.zeros(3)),
    ):
        with pytest.raises(UserError, match=r"have no styles; styles are those of MUNIT"):
            call()


def test_random_styles_of_files(tmp_path, munit, translator, capsys):
    for name, size in (("x.png", (17, 16, 3)), ("deep/y.png", (16, 20, 3))):
        image_io.write(draw(*size), tmp_path / "in" / name)
    options = ["--style", "random", "--num-styles", 3, "--seed", 4]
    assert translate(munit, tmp_path / "in", tmp_path / "out", *options) == 0
    wanted = {f"{name}-{n}.png" for name in ("x", "deep/y") for n in (1, 2, 3)}
    assert {path for path, content in tree(tmp_path / "out").items() if content} == wanted
    styles = translator.random_styles(3, seed=4)
    for n, style in enumerate(styles, start=1):
        found = image_io.read(tmp_path / f"out/x-{n}.png", 3)
        assert_near(found, translator.translate(draw(17, 16, 3), "a2b", style=style))
    assert "translated 2 of 2 images a2b" in capsys.readouterr().out
    assert translate(munit, tmp_path / "in/x.png", tmp_path / "z.png", *options) == 0
    assert f"to {tmp_path / 'z-1.png'} to {tmp_path / 'z-3.png'}" in capsys.readouterr().out
    assert translate(munit, tmp_path / "in/x.png", tmp_path / "one.png", *options[:2]) == 0
    style = translator.random_styles(1, seed=0)
    wanted = translator.translate(draw(17, 16, 3), "a2b", style=style)
    assert_near(image_io.read(tmp_path / "one.png", 3), wanted)


def test_the_style_of_a_file(tmp_path, munit, translator):
    image_io.write(draw(17, 16, 3), tmp_path / "x.png")
    image_io.write(draw(40, 30, 3), tmp_path / "night.png")
    words = munit, tmp_path / "x.png", tmp_path / "y.png", "--style", tmp_path / "night.png"
    assert translate(*words) == 0
    style = translator.style_of(draw(40, 30, 3), "b")
    found = image_io.read(tmp_path / "y.png", 3)
    assert_near(found, translator.translate(draw(17, 16, 3), "a2b", style=style))
    assert translate(*words, "--size", 20) == 0  # of the style's image as well
    assert image_io.read(tmp_path / "y.png", 3).shape == (21, 20, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-styles", 2], "error: --num-styles 2 is for --style random; add that, or"),
        (["--style", "x.png", "--seed", 0], "error: --seed 0 is for --style random; add that"),
        (["--style", "none.png"], "error: --style none.png: "),
        (["--style", "small.png"], "--style small.png: an image of 8x20 pixels is too small"),
        (["--style", "y.png"], "the output y.png is the input y.png, and inputs are never"),
    ],
)
def test_wrong_styles_are_one_message(tmp_path, munit, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    image_io.write(draw(16, 16, 3), Path("x.png"))
    image_io.write(draw(8, 20, 3), Path("small.png"))
    image_io.write(draw(16, 16, 3), Path("y.png"))
    before = tree(tmp_path)
    assert translate(munit, "x.png", "y.png", *options) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert tree(tmp_path) == before


def test_networks_without_styles_refuse_them(tmp_path, model, capsys):
    image_io.write(draw(16, 16, 3), tmp_path / "x.png")
    assert translate(model, tmp_path / "x.png", tmp_path / "y.png", "--style", "random") == 2
    assert "error: these networks have no styles" in capsys.readouterr().err
    assert not (tmp_path / "y.png").exists()


@pytest.mark.parametrize("name", ["onnx", "pt2", "safetensors"])
def test_exported_files_translate_with_the_mean_style(name, tmp_path, munit, translator):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    from fastunit import export

    path = tmp_path / f"model.{name}"
    assert export.main([str(munit), str(path), "--direction", "a2b"]) == 0
    found = fastunit.load(path, device="cpu")
    x = torch.rand(3, 3, 33, 18) * 2 - 1
    wanted = translator.translate(x, "a2b")
    assert (found.translate(x, "a2b") - wanted).abs().max() < 1e-4
    if name == "safetensors":
        assert found.random_styles(1).shape == (1, 3)
