"""fastunit.fit: the command line's training as a function, and the README's lines of Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastunit
from fastunit.common.errors import CheckpointError, ConfigError, TrainingDiverged, UserError
from fastunit.training import checkpoint
from fastunit.training.state import TrainState
from fastunit.translate import main as translate
from tests.support.checkout import ROOT


@pytest.fixture
def settings(config_file, photos, tmp_path, monkeypatch) -> fastunit.Config:
    monkeypatch.chdir(tmp_path)
    return fastunit.config.load(config_file, data_root=str(photos))


def weights(run: Path, iteration: int = 4) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.path_of(run, iteration))["unit"]


def equal(run: Path, other: Path) -> bool:
    mine, others = weights(run), weights(other)
    return all(torch.equal(mine[key], others[key]) for key in mine)


def test_it_does_what_the_command_does_and_says_nothing(settings, command, capsys):
    done = fastunit.fit(settings, output="by-python", device="cpu")
    assert capsys.readouterr() == ("", "")
    assert command("--output", "by-command")[0] == 0
    assert (done.folder, done.iteration, done.finished) == (Path("by-python"), 4, True)
    assert done.signal is None
    assert equal(done.folder, Path("by-command"))
    names = [
        sorted(path.name for path in Path(run).iterdir()) for run in (done.folder, "by-command")
    ]
    assert names[0] == names[1]
    assert done.measures == json.loads((done.folder / "result.json").read_text())
    assert done.measures["a2b"]["paired_l1"] > 0


def test_the_readmes_lines_translate_an_image(settings, monkeypatch):
    words = [str(ROOT / ".ci" / "readme-command"), "python-translate"]
    code = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert len([line for line in code.splitlines() if line]) == 5
    fastunit.fit(settings, output="runs/demo", device="cpu")
    shutil.copy("photos/testA/0.png", "day.png")
    exec(compile(code, "README.md", "exec"), {})
    assert translate(["runs/demo", "day.png", "wanted.png", "--direction", "a2b"]) == 0
    found, wanted = (np.asarray(Image.open(name)) for name in ("night.png", "wanted.png"))
    assert np.array_equal(found, wanted)


def test_a_callback_sees_the_losses_and_stops_the_run(settings):
    seen = {}

    def callback(iteration: int, losses: dict[str, float]) -> bool:
        seen[iteration] = losses
        return iteration == 3

    done = fastunit.fit(settings, output="run", device="cpu", callback=callback)
    assert (done.iteration, done.finished, done.measures) == (3, False, {})
    assert list(seen) == [1, 2, 3] and checkpoint.iterations(done.folder) == [2, 3]
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert logged[2]["cycle_a"] == seen[3]["cycle_a"] and isinstance(
        seen[3]["learning_rate"], float
    )
    again = fastunit.fit(settings, output="run", resume=True, device="cpu", callback=callback)
    assert again.finished and list(seen) == [1, 2, 3, 4]
    assert equal(again.folder, fastunit.fit(settings, output="whole", device="cpu").folder)


def test_a_stop_at_the_last_iteration_is_none(settings):
    done = fastunit.fit(settings, device="cpu", callback=lambda iteration, losses: iteration == 4)
    assert done.finished and done.folder == Path("runs/unit")


def test_an_exception_of_the_callback_ends_the_run(settings):
    def callback(iteration: int, losses: dict[str, float]) -> None:
        if iteration == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fastunit.fit(settings, output="run", device="cpu", callback=callback)
    assert checkpoint.iterations(Path("run")) == [2]
    assert fastunit.fit(settings, resume="run", device="cpu").iteration == 4


def test_it_trains_in_a_thread_with_a_bar_into_numbered_folders(settings, capfd):
    with ThreadPoolExecutor(1) as pool:
        runs = [
            pool.submit(fastunit.fit, settings, device="cpu", progress=bar).result().folder
            for bar in (False, True)
        ]
    out, err = capfd.readouterr()
    assert runs == [Path("runs/unit"), Path("runs/unit-2")] and equal(*runs)
    assert out == "" and err.count("training:") and "checking" not in err  # they were checked


def test_what_it_refuses(settings, photos):
    def refused(kind: type, message: str, config: object = settings, **options: object) -> None:
        with pytest.raises(kind, match=message):
            fastunit.fit(config, **{"device": "cpu"} | options)

    refused(ConfigError, "config must be a Config", {"max_iter": 1})
    refused(ConfigError, "max_iter=0 must be at least 1", fastunit.Config(max_iter=0))
    refused(ConfigError, "is not empty", output=photos)
    refused(CheckpointError, "nothing to resume: photos has no", resume=Path("photos"))
    refused(UserError, "device=tpu must be", device="tpu")
    assert not Path("runs").exists()


def test_divergence_names_the_last_good_checkpoint(settings, monkeypatch):
    advance = TrainState.advance

    def poisoned(self, x_a, x_b):
        losses = advance(self, x_a, x_b)
        return losses | {"cycle_b": losses["cycle_b"] * (float("nan") if self.iteration > 2 else 1)}

    monkeypatch.setattr(TrainState, "advance", poisoned)
    with pytest.raises(TrainingDiverged, match=r"cycle_b became nan.*run/checkpoints/00000002\.pt"):
        fastunit.fit(settings, output="run", device="cpu")
