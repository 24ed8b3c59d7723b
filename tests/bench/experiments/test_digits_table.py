"""bench.experiments.digits_table: which runs it makes, that it goes on, and what the table says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bench.experiments import digits_table
from bench.experiments.digits_table import METHODS, PROTOCOLS, Run
from fastunit import adapt

TINY = ("gen_ch=1", "dis_ch=1", "iterations=2", "warmup=1", "batch_size=2", "test_every=1")


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("mnist", 28), ("usps", 16)):
        for split in ("train", "test"):
            images = rng.integers(0, 256, (6, size, size), np.uint8)
            np.savez(tmp_path / f"{name}_{split}.npz", images=images, labels=np.arange(6))
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Return the command lines of the runs that were made."""
    lines, main = [], adapt.main
    monkeypatch.setattr(adapt, "main", lambda line: lines.append(line) or main(line))
    return lines


@pytest.fixture
def command(data, trained, capsys):
    def call(*args: str) -> tuple[int, str, str]:
        sets = [word for key in TINY for word in ("--set", key)]
        argv = [str(data), "--out", str(data / "out"), "--seeds", "2", *sets, *args]
        code = digits_table.main(argv)
        return code, *capsys.readouterr()

    return call


def test_every_cell_is_run_once_seed_by_seed_and_a_stopped_table_goes_on(command, trained, data):
    few = ("--methods", "source only", "adapted", "--protocols", "padded")
    code, out, _ = command(*few)
    assert code == 0 and len(trained) == 8
    seeds = [line[line.index("--seed") + 1] for line in trained]
    assert seeds == ["0"] * 4 + ["1"] * 4
    assert out == (data / "out" / "digits.md").read_text()
    assert len(out.splitlines()) == 4 and out.count("±") == 4
    with Image.open(data / "out" / "digits-curves.png") as picture:
        assert picture.width > 300
    results = sorted((data / "out").rglob("result.json"))
    assert len(results) == 8
    kept = results[0].read_bytes()
    results[3].unlink()  # as after a run that was stopped
    assert command(*few)[1] == out and len(trained) == 9
    assert results[0].read_bytes() == kept


def test_a_run_of_other_settings_is_refused(command, trained, data):
    few = ("--methods", "source only", "--protocols", "stretched", "--seeds", "1")
    assert command(*few)[0] == 0
    code, _, err = command(*few, "--set", "lr=0.5")
    assert code == 2 and "holds a run of other settings; choose another --out" in err
    for result in (data / "out").rglob("result.json"):  # nor is it continued with these
        result.unlink()
    assert command(*few, "--set", "lr=0.5")[0] == 2 and len(trained) == 2
    assert command(*few)[0] == 0


def test_a_table_of_nothing_and_a_run_that_fails_are_told(command, data):
    code, _, err = command("--table")
    assert code == 2 and "has no results yet" in err
    (data / "usps_test.npz").unlink()
    code, _, err = command("--methods", "source only")
    assert code == 2 and "the test split of usps is not in" in err


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", METHODS)
def test_protocols_and_methods(protocol, method, tmp_path):
    args = SimpleNamespace(data=tmp_path, out=tmp_path, overrides=["iterations=1200"])
    run = Run(protocol, method, "usps", "mnist", 4)
    options = adapt.parser().parse_args(run.options(args))
    settings = adapt.settings_of(options)
    assert (options.source, options.target, settings.seed) == ("usps", "mnist", 4)
    assert options.output == str(run.folder(tmp_path)) and options.data == tmp_path
    assert settings.iterations == 1200 and options.source_only == (method == "source only")
    geometry = {"stretched": "frame", "padded": "pad", "box, deformed": "box"}[protocol]
    assert settings.geometry == geometry
    moved = [settings.rotation, settings.stretch, settings.shear, settings.shift]
    assert any(moved) == all(moved) == (geometry == "box")
    assert (settings.self_label_w > 0) == ("self-labelled" in method)


def test_the_table_has_means_spreads_and_every_seed():
    def result(share):
        return {"target_accuracy": share}

    results = {
        Run("padded", "adapted", "mnist", "usps", 0): result(0.9),
        Run("padded", "adapted", "mnist", "usps", 1): result(0.8),
        Run("padded", "adapted", "usps", "mnist", 0): result(0.75),
        Run("stretched", "source only", "mnist", "usps", 0): result(0.5),
    }
    assert digits_table.table(results)[2:] == [
        "| padded | adapted | 0.8500 ± 0.0707 (0.9000, 0.8000) | 0.7500 (0.7500) |",
        "| stretched | source only | 0.5000 (0.5000) | not run |",
    ]
