"""fastunit.load and Translator: every kind of input, as the command line translates it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit import config
from fastunit.common.errors import CheckpointError, ConfigError, DataError, UserError
from fastunit.models.unit import networks
from fastunit.translate import main
from tests.support.files import with_nan


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def by_command(model: Path, file: Path, direction: str = "a2b") -> np.ndarray:
    """Return what `python -m fastunit.translate` makes of a file."""
    out = file.with_name("out.png")
    words = [model, file, out, "--direction", direction, "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    with Image.open(out) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def translator(model: Path) -> fastunit.Translator:
    return fastunit.load(model, device="cpu")


# ---- arrays and images


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (5, 200), (32, 32)])
def test_arrays_and_images_of_any_size_are_translated_as_files_are(
    tmp_path, model, translator, size
):
    x = draw(*size, 3)
    Image.fromarray(x).save(tmp_path / "x.png")
    wanted = by_command(model, tmp_path / "x.png", "b2a")
    found = translator.translate(x, "b2a")
    assert isinstance(found, np.ndarray) and found.dtype == np.uint8
    assert np.array_equal(found, wanted) and found.shape == (*size, 3)
    image = translator.translate(Image.fromarray(x), "b2a")
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), wanted)


def test_a_batch_of_arrays(translator):
    x = draw(2, 9, 13, 3)
    before = x.copy()
    found = translator.translate(x, "a2b")
    assert found.shape == x.shape and np.array_equal(x, before)
    for one, batch in zip(map(translator.translate, x, ["a2b"] * 2), found, strict=True):
        assert np.abs(one.astype(int) - batch).max() <= 1
    assert translator.translate(x[:0], "a2b").shape == (0, 9, 13, 3)


def test_views_and_read_only_arrays(translator):
    x = draw(9, 13, 3)
    mirrored = translator.translate(x[:, ::-1], "a2b")
    assert np.array_equal(mirrored, translator.translate(x[:, ::-1].copy(), "a2b"))
    x.flags.writeable = False
    translator.translate(x, "a2b")  # a warning would be an error


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]


def of_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(draw(9, 13).astype(np.uint16) * 257)
    image = Image.fromarray(draw(9, 13, 4))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_are_read_as_files_are(tmp_path, model, translator, mode):
    image = of_mode(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    before = image.tobytes()
    found = translator.translate(image, "a2b")
    assert (found.mode, found.size) == ("RGB", image.size)
    assert np.array_equal(np.asarray(found), by_command(model, file))
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_gray_domains(tmp_path, save_networks, mode):
    model = save_networks(tmp_path / "run", input_dim_b=1)
    translator, image = fastunit.load(model, "cpu"), of_mode(mode)
    image.save(tmp_path / "x.png")
    gray = translator.translate(image, "a2b")
    assert gray.mode == "L" and np.array_equal(gray, by_command(model, tmp_path / "x.png"))
    colours = translator.translate(image, "b2a")
    wanted = by_command(model, tmp_path / "x.png", "b2a").astype(int)
    assert colours.mode == "RGB"
    assert np.abs(np.asarray(colours) - wanted).max() <= (9 if mode == "RGBA" else 0)  # luminance
    assert translator.translate(draw(9, 13, 1), "b2a").shape == (9, 13, 3)
    assert translator.translate(draw(9, 13, 3), "a2b").shape == (9, 13, 1)


def test_an_image_is_turned_upright(tmp_path, model, translator):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(draw(9, 13, 3)).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        found = translator.translate(image, "a2b")
    assert found.size == (9, 13)
    assert np.array_equal(found, by_command(model, tmp_path / "x.png"))


def test_sixteen_bits_take_the_range_of_their_domain(tmp_path, save_networks):
    model = save_networks(tmp_path / "run", data={"range_a": [100, 400]})
    translator, image = fastunit.load(model, "cpu"), Image.fromarray(draw(9, 13).astype(np.uint16))
    image.save(tmp_path / "x.png")
    assert np.array_equal(translator.translate(image, "a2b"), by_command(model, tmp_path / "x.png"))
    with pytest.raises(
        DataError, match=r"not of 16 bits or floating, as .*_a=\[100, 400\] expects"
    ):
        translator.translate(of_mode("RGB"), "a2b")
    with pytest.raises(DataError, match=r"values 0\.\.70000 are not of 16 bits"):
        translator.translate(Image.fromarray(np.array([[0, 70_000]], np.int32)), "b2a")


# ---- tensors


def test_a_tensor_of_uint8_is_an_array_with_other_axes(translator):
    x = draw(2, 9, 13, 3)
    found = translator.translate(torch.from_numpy(x).permute(0, 3, 1, 2), "a2b")
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(0, 2, 3, 1), translator.translate(x, "a2b"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 9, 13), (2, 3, 9, 13)])
def test_a_floating_tensor_goes_through_the_networks(translator, dtype, shape):
    x = (torch.rand(shape) * 2 - 1).to(dtype)
    found = translator.translate(x, "a2b")
    assert (found.shape, found.dtype, found.device) == (x.shape, dtype, x.device)
    assert found.is_contiguous() and not found.requires_grad
    with torch.no_grad():
        wanted = translator.networks.translate(x.float().view(-1, 3, 9, 13), "a2b")
    torch.testing.assert_close(found, wanted.view(shape).to(dtype), rtol=1e-2, atol=1e-4)


def test_the_memory_format_is_kept(translator):
    x = torch.rand(2, 3, 9, 13).contiguous(memory_format=torch.channels_last)
    found = translator.translate(x, "a2b")
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradients_where_they_are_asked_for(translator):
    x = torch.rand(3, 8, 8, requires_grad=True)
    assert not translator.translate(x, "a2b").requires_grad
    translator.translate(x, "a2b", grad=True).sum().backward()
    assert x.grad.abs().sum() > 0
    weight = next(translator.networks.gen_a.enc.parameters())
    assert weight.grad.abs().sum() > 0
    translator.networks.zero_grad()


def test_networks_of_ones_own_keep_their_mode_and_translate_without_dropout():
    settings = config.from_dict(
        {"network": "paper", "paper": {"gen": {"ch": 4, "res_dropout_ratio": 0.5}}}
    )
    unit = networks(settings)
    translator = fastunit.Translator(unit, settings, device="cpu")
    assert not unit.training
    unit.train()
    x = torch.rand(3, 16, 16)
    first, second = (translator.translate(x, "a2b") for _ in range(2))
    assert torch.equal(first, second) and unit.training


# ---- what is refused


REFUSED = [
    (draw(9, 13, 3), "a2c", "direction='a2c' must be one of a2b, b2a"),
    (draw(9, 13), "a2b", r"shape \(9, 13\).*\[H, W, 3\] or \[N, H, W, 3\]"),
    (draw(9, 13, 4), "a2b", r"an array of shape \(9, 13, 4\) does not fit"),
    (draw(9, 13, 3).astype(float), "a2b", "must be uint8, or float32 in .*, not float64"),
    (draw(0, 13, 3), "a2b", r"\(0, 13, 3\) has no pixels"),
    (torch.rand(9, 13, 3), "a2b", r"\(9, 13, 3\).*\[3, H, W\] or \[N, 3, H, W\]"),
    (torch.rand(1, 1, 3, 9, 13), "a2b", "a tensor of shape"),
    (torch.ones(3, 9, 13, dtype=torch.int64), "a2b", "or uint8, not torch.int64"),
    (Image.new("RGB", (0, 4)), "a2b", "has no pixels"),
    ("x.png", "a2b", "cannot translate an object of type str"),
    (None, "b2a", "a Pillow image"),
]


@pytest.mark.parametrize(("x", "direction", "message"), REFUSED)
def test_other_inputs_are_refused(translator, x, direction, message):
    with pytest.raises(UserError, match=message):
        translator.translate(x, direction)


def test_gradients_need_a_floating_tensor(translator):
    with pytest.raises(DataError, match="grad=True needs a tensor of a floating dtype, not an arr"):
        translator.translate(draw(9, 13, 3), "a2b", grad=True)


def test_networks_of_four_channels_take_no_images(tmp_path, save_networks):
    translator = fastunit.load(save_networks(tmp_path, input_dim_b=4), "cpu")
    assert translator.translate(draw(9, 13, 3), "a2b").shape == (9, 13, 4)
    for direction in ("a2b", "b2a"):
        with pytest.raises(DataError, match="channels to"):
            translator.translate(of_mode("RGB"), direction)


# ---- what is loaded


def test_a_run_a_checkpoint_and_release_files_are_the_same(tmp_path, model, translator):
    lone = Path(shutil.copy(model.with_name("gen_00000001.pt"), tmp_path))
    x = draw(9, 13, 3)
    wanted = translator.translate(x, "a2b")
    given = fastunit.load(lone, config=translator.config)
    (tmp_path / "config.yaml").write_text(config.dump_yaml(translator.config))
    for other in (given, fastunit.load(lone), fastunit.load(str(model.parents[1]))):
        assert np.array_equal(other.translate(x, "a2b"), wanted)
        assert other.config == translator.config
    assert translator.device == torch.device("cpu") and translator.precision == "fp32"


def test_a_precision(model, translator):
    x = torch.rand(3, 32, 32) * 2 - 1
    rounded = fastunit.load(model, "cpu", "bf16").translate(x, "a2b")
    exact = translator.translate(x, "a2b")
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02


WRONG = [
    (lambda m, t: {"path": t / "no.pt"}, CheckpointError, "there is no checkpoint .*no.pt"),
    (lambda m, t: {"path": t}, CheckpointError, "has no checkpoints/"),
    (lambda m, t: {"path": with_nan(m, t)}, CheckpointError, "nan.pt .* values .* not finite"),
    (
        lambda m, t: {"path": shutil.copy(m.with_name("gen_00000001.pt"), t)},
        CheckpointError,
        "contains no configuration; give its YAML as config",
    ),
    (
        lambda m, t: {"path": m, "config": config.load()},
        ConfigError,
        "has its own configuration; leave out config",
    ),
    (lambda m, t: {"path": m, "precision": "fp8"}, ConfigError, "precision='fp8' must be one of"),
    (lambda m, t: {"path": m, "precision": "tf32"}, ConfigError, "tf32 needs an NVIDIA GPU"),
    (lambda m, t: {"path": m, "device": "tpu"}, UserError, "^device=tpu must be auto, cpu"),
    (lambda m, t: {"path": m, "device": torch.device("meta")}, UserError, "device=meta must be"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), WRONG)
def test_wrong_arguments_are_user_errors(tmp_path, model, arguments, kind, message):
    with pytest.raises(kind, match=message):
        fastunit.load(**{"device": "cpu"} | arguments(model, tmp_path))


@pytest.mark.gpu
def test_a_gpu_is_taken_and_results_come_back_to_the_input(model):
    translator = fastunit.load(model, precision="fp32")
    x = torch.rand(3, 9, 13) * 2 - 1
    found = translator.translate(x, "a2b")
    assert translator.device == torch.device("cuda", 0) and found.device == x.device
    assert translator.translate(x.cuda(), "a2b").is_cuda
    torch.testing.assert_close(
        found, fastunit.load(model, "cpu").translate(x, "a2b"), rtol=1e-3, atol=1e-3
    )
