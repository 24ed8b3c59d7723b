"""Built-in demo domains: drawn landscapes by day (A) and by night (B), as real JPEG files."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastunit import scenes
from fastunit.errors import ConfigError, DataError
from fastunit.paths import cache_dir

N_TRAIN, N_TEST = 400, 64
# What `demo_root` draws by default, for those who only want to know.
DEMO_COUNTS: dict[str, int] = {
    "train_a": N_TRAIN,
    "train_b": N_TRAIN,
    "test_a": N_TEST,
    "test_b": N_TEST,
}

_TRAIN_A, _TRAIN_B, _TEST = range(3)  # separate random streams: no scene is in two of them
_Job = tuple[str | None, str | None, int, int]  # subfolders by day and by night, stream, index


def demo_root(n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 2017) -> Path:
    """Return the folder of the demo domains, drawing them first if they are not there yet.

    It holds ``trainA trainB testA testB`` with JPEG files of 96x72 pixels (width x height).
    trainA and trainB show different scenes (`n_train` each, unpaired); a test scene (`n_test`)
    has the same file name in testA and testB, so that translations can be measured. The same
    arguments always give the same pictures. The folder appears only when it is complete.

    Raises ConfigError for counts below 1 or a negative seed, DataError if the cache folder
    cannot be written.
    """
    for name, value, least in (("n_train", n_train, 1), ("n_test", n_test, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"demo data: {name} is {value}, but must be at least {least}")
    root = cache_dir() / f"demo-v{scenes.VERSION}-{n_train}-{n_test}-{seed}"
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        if root.is_dir():
            return root
        _draw_all(partial, n_train, n_test, seed)
        _publish(partial, root)
    except OSError as error:
        raise DataError(
            f"cannot write the demo data to {root.parent}: {error.strerror or error}; "
            "set FASTUNIT_CACHE to a folder with space that you may write to"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def draw_training_pairs(folder: Path, count: int = N_TRAIN, seed: int = 2017) -> None:
    """Draw the scenes of the demo's trainA by day and by night, into folder/trainA and trainB.

    They are true pairs by their file names, which the demo's own training sets are not, and none
    is among its test scenes. JPEG files as those of `demo_root`.
    """
    _draw(folder, [("trainA", "trainB", _TRAIN_A, i) for i in range(count)], seed)


def _draw_all(folder: Path, n_train: int, n_test: int, seed: int) -> None:
    jobs = [("trainA", None, _TRAIN_A, i) for i in range(n_train)]
    jobs += [(None, "trainB", _TRAIN_B, i) for i in range(n_train)]
    jobs += [("testA", "testB", _TEST, i) for i in range(n_test)]
    _draw(folder, jobs, seed)


def _draw(folder: Path, jobs: list[_Job], seed: int) -> None:
    """Draw each job's scene, by day and by night, into the subfolders that it names."""
    for name in {name for day, night, *_ in jobs for name in (day, night) if name}:
        (folder / name).mkdir(parents=True)
    # In a log file each refresh is a line of its own.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    bar = tqdm(jobs, desc="drawing demo scenes", unit="scene", mininterval=interval)
    for day, night, stream, index in bar:
        scene = scenes.make_scene(np.random.default_rng([seed, stream, index]))
        if day:
            _save(scenes.render(scene, night=False), folder / day / f"{index:04d}.jpg")
        if night:
            _save(scenes.render(scene, night=True), folder / night / f"{index:04d}.jpg")


def _publish(partial: Path, root: Path) -> None:
    try:
        os.rename(partial, root)
    except OSError:
        if not root.is_dir():  # else another process was first, with the same pictures
            raise


def _save(picture: np.ndarray, path: Path) -> None:
    # 4:4:4: chroma subsampling would smear the small coloured shapes.
    Image.fromarray(picture).save(path, quality=95, subsampling=0)
