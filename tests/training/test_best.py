"""The best checkpoint, chosen on held-out training images."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastunit
from fastunit import config
from fastunit.common import waiting
from fastunit.common.errors import ConfigError, DataError, StorageError
from fastunit.data.discovery import Domains
from fastunit.evaluation import features
from fastunit.training import best, checkpoint


class Levels:
    """Features: the mean of each channel."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.double().mean((2, 3))


@pytest.fixture
def levels(monkeypatch) -> None:
    monkeypatch.setattr(features, "load", lambda name, weights, device: Levels())


@pytest.fixture
def more(photos: Path) -> Path:
    """Return `photos` with nine training images of each domain."""
    random = np.random.default_rng(1)
    for split in ("trainA", "trainB"):
        for index in range(9):
            pixels = random.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / split / f"{index}.png")
    return photos


def paths(count: int) -> tuple[Path, ...]:
    return tuple(Path(f"{index:04d}.png") for index in range(count))


def test_nothing_is_held_out_unless_it_is_asked_for():
    domains = Domains(paths(9), paths(9), (), ())
    assert best.split(domains, config.Config()) == (domains, None)


@pytest.mark.parametrize(("count", "held"), [(8, 4), (50, 5), (400, 40), (9000, 200)])
def test_images_are_held_out_from_training_and_no_test_image_is_used(count, held):
    domains = Domains(paths(count), paths(count), paths(3), paths(2))
    training, apart = best.split(domains, config.Config(evaluate_every=1))
    assert apart is not None and len(apart.test_a) == held == len(apart.test_b)
    assert not set(training.train_a) & set(apart.test_a)
    assert set(training.train_a) | set(apart.test_a) == set(domains.train_a)
    assert (training.test_a, training.test_b) == (domains.test_a, domains.test_b)
    assert not apart.train_a


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="train_b has only 7; set evaluate_every=0"):
        best.split(Domains(paths(9), paths(7), (), ()), config.Config(evaluate_every=1))


def test_a_run_keeps_the_best_beside_the_last_and_reports_both(levels, command, more):
    code, out, _ = command("--output", "run", "--set", "evaluate_every=1", "--set", "lr=0.01")
    assert code == 0
    lines = (Path("run") / "metrics.jsonl").read_text().splitlines()
    values = {r["iteration"]: r["held_out"] for r in map(json.loads, lines) if "held_out" in r}
    assert sorted(values) == [1, 2, 3, 4]
    first = min(values, key=lambda iteration: (values[iteration], iteration))
    kept = checkpoint.load(Path("run/checkpoints/best.pt"))
    assert kept["iteration"] == first and kept["held_out"] == values[first]
    result = json.loads((Path("run") / "result.json").read_text())
    assert result["iteration"] == 4 and result["best"]["iteration"] == first
    assert {"a2b", "b2a"} <= result["best"].keys() and "best.pt" in out
    assert fastunit.load("run/checkpoints/best.pt", "cpu").networks is not None
    assert checkpoint.iterations(Path("run")) == [2, 4]


@pytest.fixture
def worsening(levels, monkeypatch) -> None:
    """Measurements are best at iteration 1 and grow from then on."""
    values = iter([0.3, 0.4, 0.5, 0.6, 0.7])
    monkeypatch.setattr(best.Best, "measure", lambda self, pair: {"held_out": next(values)})


@pytest.mark.parametrize(("patience", "last"), [(0, 4), (1, 2), (2, 3), (9, 4)])
def test_patience_ends_a_run_that_gets_no_better(worsening, command, more, patience, last):
    keys = ("--set", "evaluate_every=1", "--set", f"patience={patience}")
    code, out, err = command("--output", "run", *keys)
    assert code == 0 and f"trained to iteration {last}," in out
    assert checkpoint.iterations(Path("run"))[-1] == last
    result = json.loads((Path("run") / "result.json").read_text())
    assert result["iteration"] == last and result["best"]["iteration"] == 1
    assert ("no better than that of iteration 1" in err) == (last < 4)


def test_patience_counts_measurements_whose_checkpoint_cannot_be_written(
    levels, command, more, monkeypatch
):
    values, write = iter([0.9, 0.5, 0.4, 0.3]), checkpoint.write
    monkeypatch.setattr(best.Best, "measure", lambda self, pair: {"held_out": next(values)})

    def refused(state, path, **options):
        if path.name == best.NAME:
            raise StorageError(f"cannot write {path}: No space left on device")
        return write(state, path, **options)

    monkeypatch.setattr(checkpoint, "write", refused)
    keys = ("evaluate_every=1", "patience=1", "checkpoint.on_save_error=retry")
    code, out, err = command("--output", "run", *(part for key in keys for part in ("--set", key)))
    assert code == 0 and "trained to iteration 4," in out
    assert "No space left" in err and "no better" not in err


def test_patience_counts_across_a_resume(worsening, command, more):
    keys = ("--set", "evaluate_every=1", "--set", "patience=2")
    command("--output", "run", *keys, "--max-iter", 2)
    code, out, _ = command("--resume", "run", "--max-iter", 4, defaults=False)
    assert code == 0 and "trained to iteration 3," in out


def test_patience_needs_measurements():
    with pytest.raises(ConfigError, match=r"patience=3 counts .* set evaluate_every"):
        config.from_dict({"patience": 3})


def test_a_resumed_run_remembers_the_best(levels, command, more):
    keys = ("--set", "evaluate_every=1", "--set", "lr=0.01")
    command("--output", "whole", *keys)
    command("--output", "parts", *keys, "--max-iter", 2)
    assert command("--resume", "parts", "--max-iter", 4, defaults=False)[0] == 0
    whole, parts = (checkpoint.load(Path(f"{n}/checkpoints/best.pt")) for n in ("whole", "parts"))
    assert whole["iteration"] == parts["iteration"] and whole["held_out"] == parts["held_out"]
    assert all(torch.equal(whole["unit"][key], parts["unit"][key]) for key in whole["unit"])


@pytest.mark.parametrize(("choice", "status"), [("stop", 3), ("retry", 0)])
def test_a_best_checkpoint_that_cannot_be_written_obeys_on_save_error(
    levels, command, more, monkeypatch, choice, status
):
    write = checkpoint.write

    def refuse(state, path):
        if path.name == best.NAME:
            raise StorageError(f"cannot write {path}: disk full")
        write(state, path)

    monkeypatch.setattr(checkpoint, "write", refuse)
    keys = ("--set", "evaluate_every=3", "--set", f"checkpoint.on_save_error={choice}")
    code, _, err = command("--output", "run", *keys)
    assert code == status and "Traceback" not in err
    assert "best.pt: disk full; the last good checkpoint is run/checkpoints/00000002.pt" in err
    assert checkpoint.iterations(Path("run")) == ([2, 4] if status == 0 else [2])


def test_a_signal_while_images_are_measured_still_saves_a_checkpoint(
    levels, command, more, monkeypatch
):
    def measure(self, pair):
        with waiting.on(lambda: "a file"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(best.Best, "measure", measure)
    code, out, _ = command("--output", "run", "--set", "evaluate_every=3")
    assert code == 143 and "stopped at iteration 3" in out
    assert checkpoint.iterations(Path("run")) == [2, 3]


def test_a_best_checkpoint_of_others_is_looked_for_anew(levels, command, more, caplog):
    keys = ("--set", "evaluate_every=1")
    command("--output", "run", *keys, "--max-iter", 2)
    path = Path("run/checkpoints/best.pt")
    checkpoint.write(checkpoint.load(path) | {"held_out": "low"}, path)
    assert command("--resume", "run", "--max-iter", 4, defaults=False)[0] == 0
    assert "has no held_out; the best checkpoint is looked for anew" in caplog.text
    assert checkpoint.load(path)["iteration"] > 2


def test_only_a_lower_value_replaces_the_best(levels, tmp_path, tiny):
    images = []
    for index in range(2):
        Image.new("RGB", (20, 20), (90 * index,) * 3).save(tmp_path / f"{index}.png")
        images.append(tmp_path / f"{index}.png")
    held = Domains((), (), tuple(images), tuple(images))
    keeper = best.Best(config.from_dict(tiny), held, torch.device("cpu"))
    found = [
        keeper.keep(value, {"iteration": i}, tmp_path)
        for i, value in enumerate((0.5, 0.5, float("nan"), 0.4, 0.6), 1)
    ]
    assert found == [True, False, False, True, False]
    assert (keeper.value, keeper.iteration) == (0.4, 4)
