"""The command fastunit.export: files that translate as the networks do, without fastunit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit import translate
from fastunit.common.errors import CheckpointError, UserError
from fastunit.export import main
from fastunit.inference import export
from fastunit.inference.exported import networks_file
from tests.support.checkout import ROOT
from tests.support.files import tree
from tests.support.processes import python

pytest.importorskip("onnxruntime", reason="needs the extra export")
SHARED = {"share": {"enc": 1, "dec": 1}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, save_networks) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that exports a small model once: format -> (checkpoint, file)."""
    folder = tmp_path_factory.mktemp("export")
    model = save_networks(folder / "run", **SHARED)

    def file(name: str) -> tuple[Path, Path]:
        path = folder / f"model.{name}"
        if not path.exists():
            assert main([str(model), str(path), "--direction", "a2b"]) == 0
        return model, path

    return file


def block(marker: str) -> str:
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- {marker} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_file_translates_any_number_and_size_as_the_networks_do(exported, name):
    model, path = exported(name)
    pair = fastunit.load(model, "cpu").networks
    found, config = networks_file(path)
    assert (config.input_dim_a, config.input_dim_b) == (3, 3)
    for shape in ((1, 3, 8, 8), (3, 3, 33, 60), (1, 3, 64, 16), (2, 3, 5, 7)):
        x = torch.rand(shape) * 2 - 1
        with torch.no_grad():
            difference = found.translate(x, "a2b") - pair.translate(x, "a2b")
        assert difference.abs().max() < 2e-5


def test_only_standard_operators_and_a_free_size_are_in_the_graph(exported):
    import onnx

    graph = onnx.load(exported("onnx")[1])
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert [each.domain for each in graph.opset_import] == [""] and not graph.functions
    sizes = [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    program = torch.export.load(exported("pt2")[1])
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert calls and not any("fastunit" in call for call in calls)


@pytest.mark.parametrize("name", ["onnx", "pt2", "safetensors"])
def test_others_may_read_a_file_as_any_other(exported, name, tmp_path):
    (tmp_path / "other").touch()
    assert exported(name)[1].stat().st_mode == (tmp_path / "other").stat().st_mode


def test_shared_layers_are_in_a_safetensors_file_once_and_shared_again(exported):
    from safetensors import safe_open

    model, path = exported("safetensors")
    pair, loaded = fastunit.load(model, "cpu").networks, networks_file(path)[0]
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    assert len(names) == len({p.data_ptr() for p in pair.state_dict().values()})
    assert len(list(loaded.parameters())) == len(list(pair.parameters()))
    for key, value in pair.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_weights_that_are_not_finite_are_refused(exported, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(exported("safetensors")[1], "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError, match="weights that are NaN or infinite"):
        networks_file(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", export.FORMATS)
def test_translate_reads_it_back(exported, tmp_path, name):
    model, path = exported(name)
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    for checkpoint, out in ((model, "own.png"), (path, "exported.png")):
        argv = [checkpoint, tmp_path / "in.png", tmp_path / out, "--direction", "a2b"]
        assert translate.main([str(each) for each in argv]) == 0
    own, found = (np.asarray(Image.open(tmp_path / f"{n}.png"), int) for n in ("own", "exported"))
    assert np.abs(own - found).max() <= (0 if name == "safetensors" else 1)


def test_the_direction_that_a_file_does_not_hold_is_refused(exported, tmp_path, capsys):
    argv = [exported("onnx")[1], exported("onnx")[1], tmp_path / "x.png", "--direction", "b2a"]
    assert translate.main([str(each) for each in argv]) == 2
    assert "translates a2b only, not b2a" in capsys.readouterr().err


def test_the_documented_lines_run_without_fastunit(exported, tmp_path):
    model, path = exported("onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "day.png")
    (tmp_path / "day2night.onnx").write_bytes(path.read_bytes())
    (tmp_path / "day2night.pt2").write_bytes(exported("pt2")[1].read_bytes())
    end = "\nimport sys; assert not any(n.startswith('fastunit') for n in sys.modules)"
    for marker in ("onnx-alone", "pt2-alone"):
        done = python("-c", block(marker) + end, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    night = np.asarray(Image.open(tmp_path / "night.png"), int)
    wanted = fastunit.load(model, "cpu").translate(pixels, "a2b").astype(int)
    assert np.abs(night - wanted).max() <= 1


@pytest.mark.slow
def test_the_paper_s_networks_are_exported(tmp_path, tiny, capsys):
    from fastunit import config
    from fastunit.models.unit import networks

    keys = {"network": "paper", "paper": {"gen": {"ch": 4}, "dis": {"ch": 4}}}
    crop = {"crop_image_height": 64, "crop_image_width": 64}
    settings = config.from_dict(keys | crop)
    pair = networks(settings).generator_pair().eval()
    for name in export.FORMATS:
        path = tmp_path / f"x.{name}"
        export.export(pair, settings, path, name, "b2a")
        images = [torch.rand(1, 3, 32, 48) * 2 - 1, torch.rand(3, 3, 64, 40) * 2 - 1]
        assert export.check(path, pair, "b2a", images) < export.TOLERANCE


def test_a_file_that_is_not_right_is_refused_and_not_left(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    (tmp_path / "x.safetensors").write_text("what was there")
    before = tree(tmp_path)
    assert main([str(exported("onnx")[0]), str(tmp_path / "x.safetensors")]) == 2
    assert "differ by up to 0 of the range" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_it_is_compared_on_the_images_that_are_given(exported, tmp_path, capsys):
    for name, size in (("a", (20, 30)), ("b", (40, 12))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    argv = [str(exported("onnx")[0]), str(tmp_path / "x.safetensors"), "--images", str(tmp_path)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "images of 1x3x30x20, 1x3x12x40" in out and "both directions" in out


WRONG = {
    "no format": (["model", "x.bin"], "cannot tell a format"),
    "another extension": (["model", "x.onnx", "--format", "pt2"], "must end in .pt2"),
    "no direction": (["model", "x.onnx"], "give --direction"),
    "no images": (["model", "x.safetensors", "--images", "nowhere"], "nowhere does not exist"),
    "no checkpoint": (["nothing.pt", "x.safetensors"], "no checkpoint nothing.pt"),
}


@pytest.mark.parametrize(("args", "words"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_write_nothing(model, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    assert main([str(model) if each == "model" else each for each in args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", export.FORMATS)
def test_damaged_and_foreign_files_are_refused(tmp_path, name):
    path = tmp_path / f"x.{name}"
    with pytest.raises(UserError, match="there is no file"):
        networks_file(path)
    path.write_bytes(b"no such file")
    with pytest.raises(UserError, match="is damaged, or not a file of fastunit"):
        networks_file(path)
