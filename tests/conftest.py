"""What every test gets: a private cache folder, fixed seeds, few threads; and shared fixtures."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch._inductor import config as inductor

from fastunit import config
from fastunit.models.unit import networks
from fastunit.training import checkpoint
from fastunit.training.step import TrainStep
from tests.support.checkout import ROOT
from tests.support.processes import compiler_processes

_SHARED = ROOT.parent / "shared"

_TINY = {
    "gen": {"dim": 4, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 1},
    "share": {"enc": 1, "dec": 1},
    "batch_size": 2,
    "new_size": 20,
    "crop_image_height": 16,
    "crop_image_width": 16,
    "num_workers": 1,
    "max_iter": 4,
    "display_size": 2,
}
_EVERY = {"log_iter": 1, "image_save_iter": 2, "image_display_iter": 1, "snapshot_save_iter": 2}

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep the order of files below, and signals reach child processes."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    # What a shell starts in the background, or nohup starts, ignores signals, and child processes
    # inherit that: tests that send one would wait for ever.
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that have slow tests; skip what is marked `gpu` where there is none."""
    # Of two workers neither is then left alone with a test of minutes at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU; torch.cuda.is_available() is false")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of reach, of subprocesses too, and tiny tensors on few threads."""
    # Several threads cost more than they save at these sizes, most of all on a busy machine.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes = compiler_processes(
            int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), os.cpu_count() or 1
        )
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", str(processes))
        patch.setattr(inductor, "compile_threads", processes)  # it has read the variable before
        # Runs of pytest that tests start are not this one's workers: pytest-benchmark asks this.
        patch.delenv("PYTEST_XDIST_WORKER", raising=False)
        patch.setenv("FASTUNIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference numbers and real images beside the checkout, or skip."""
    if not _SHARED.is_dir():
        pytest.skip(f"needs the reference data in {_SHARED}, which is not there")
    return _SHARED


@pytest.fixture(scope="session")
def load_golden(shared: Path) -> Callable[[str], Golden]:
    """Return a loader of golden cases: name -> (the case's JSON, its arrays, all float64)."""

    def load(name: str) -> Golden:
        case = json.loads((shared / "golden" / f"{name}.json").read_text(encoding="utf-8"))
        with np.load(shared / "golden" / f"{name}.npz") as arrays:
            return case, dict(arrays)

    return load


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Return a configuration whose step takes milliseconds; a copy, free to change."""
    return copy.deepcopy(_TINY)


@pytest.fixture
def make_step(tiny: dict[str, Any]) -> Callable[..., TrainStep]:
    """Return a maker of training steps of `tiny`, each with networks of its own, all alike."""

    def made(dtype: torch.dtype = torch.float32, **changes: object) -> TrainStep:
        torch.manual_seed(11)
        settings = config.from_dict(tiny | changes)
        return TrainStep(networks(settings).to(dtype), settings)

    return made


@pytest.fixture(scope="session")
def as_trained() -> Callable[..., np.ndarray]:
    """Return a function that reads a file by the training pipeline: uint8 [H, W, channels].

    With `exact`, float32 in [-1, 1].
    """
    from fastunit.data.pipeline import iter_images

    def read(
        file: Path, channels: int, threads: int = 1, exact: bool = False, **options: object
    ) -> np.ndarray:
        framing = {"batch_size": 1, "crop": None, "new_size": None}
        device = torch.device("cpu")
        (image,) = iter_images(
            [file], channels=channels, device=device, threads=threads, **framing, **options
        )
        pixels = image[0].permute(1, 2, 0)
        return pixels.numpy() if exact else ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()

    return read


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of small pictures: trainA (5), trainB (3), testA and testB (2 pairs)."""
    rng = np.random.default_rng(0)
    for split, count in (("trainA", 5), ("trainB", 3), ("testA", 2), ("testB", 2)):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def _silent_logging() -> None:
    """Undo what `cli.setup_logging` did in an earlier test or in a fixture of any scope."""
    logger = logging.getLogger("fastunit")
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(scope="session")
def save_networks() -> Callable[..., Path]:
    """Return a function that saves small untrained networks: (run folder, keys) -> checkpoint."""

    def save(run: Path, **keys: object) -> Path:
        small = {
            "gen": {"dim": 4, "n_downsample": 2, "n_res": 1},
            "dis": {"dim": 4, "n_layer": 2, "num_scales": 1},
        }
        crop = {"crop_image_height": 32, "crop_image_width": 32}
        settings = config.from_dict(small | crop | keys)
        torch.manual_seed(7)  # a session's fixture is made before `_seeds`
        unit = networks(settings)
        state = {"iteration": 1, "config": config.to_dict(settings), "unit": unit.state_dict()}
        return checkpoint.save(run, {**state, "ema": None}, unit)

    return save


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, save_networks: Callable[..., Path]) -> Path:
    """Return a checkpoint of three channels in both domains; shared, to be left as it is."""
    return save_networks(tmp_path_factory.mktemp("run"))


@pytest.fixture
def config_file(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """Return a YAML file of `tiny` that logs, shows and saves all the time."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny | _EVERY))
    return path


@pytest.fixture
def command(config_file, photos, tmp_path, monkeypatch, capsys):
    """Return a function that trains in tmp_path on `photos`: (exit code, stdout, stderr)."""
    from fastunit import train

    monkeypatch.chdir(tmp_path)

    def run(*args: object, defaults: bool = True) -> tuple[int, str, str]:
        argv = [*(["--config", config_file, "--data", photos] if defaults else []), *args]
        code = train.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return run
