"""The built-in domains: drawn landscapes, written as image files to the cache folder.

`scenes`: by day (A) and by night (B), JPEG, 96x72 pixels (width x height). `scene_maps`: by day
(A) and as flat colour maps (B), PNG, 48x36 pixels.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from fastunit.common import progress
from fastunit.common.errors import ConfigError, DataError
from fastunit.common.files import cache_dir
from fastunit.data import scene_maps, scenes

N_TRAIN, N_TEST = 400, 64
# How many images `demo_root` draws by default.
DEMO_COUNTS: dict[str, int] = {
    "train_a": N_TRAIN,
    "train_b": N_TRAIN,
    "test_a": N_TEST,
    "test_b": N_TEST,
}

_TRAIN_A, _TRAIN_B, _TEST = range(3)  # separate random streams: no scene is in two of them
_Job = tuple[str | None, str | None, int, int]  # subfolders of a and of b, stream, index
_Rendering = Callable[[scenes.Scene], np.ndarray]


def _renderings(builtin: str) -> tuple[_Rendering, _Rendering, str]:
    """Return how scenes are rendered in domains a and b, and the extension of the files."""
    if builtin == "scene_maps":
        return scene_maps.day_image, scene_maps.flat_map, "png"
    return partial(scenes.render, night=False), partial(scenes.render, night=True), "jpg"


def size(builtin: str) -> tuple[int, int]:
    """Return the height and width of a pair of built-in domains' images, in pixels."""
    reduced = scene_maps.REDUCE if builtin == "scene_maps" else 1
    return scenes.HEIGHT // reduced, scenes.WIDTH // reduced


def demo_root(
    n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 2017, builtin: str = "scenes"
) -> Path:
    """Return the folder of a pair of built-in domains; draws the images if they do not exist yet.

    The folder holds trainA, trainB, testA and testB. trainA and trainB show different scenes
    (`n_train` each, unpaired). Each of the `n_test` test scenes has the same file name in testA
    and testB, so that translations can be evaluated. The same arguments always give the same
    images. The folder is renamed into place when it is complete.

    Raises:
        ConfigError: a count is below 1, or the seed negative.
        DataError: the cache folder cannot be written.
    """
    for name, value, least in (("n_train", n_train, 1), ("n_test", n_test, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"demo data: {name} is {value}, but must be at least {least}")
    name = "demo" if builtin == "scenes" else builtin
    root = cache_dir() / f"{name}-v{scenes.VERSION}-{n_train}-{n_test}-{seed}"
    unfinished = root.with_name(f".{root.name}.{uuid.uuid4().hex}")
    try:
        if root.is_dir():
            return root
        _draw_all(unfinished, n_train, n_test, seed, builtin)
        _publish(unfinished, root)
    except OSError as error:
        raise DataError(
            f"cannot write the demo data to {root.parent}: {error.strerror or error}; "
            "set FASTUNIT_CACHE to a folder with space that you may write to"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def draw_training_pairs(folder: Path, count: int = N_TRAIN, seed: int = 2017) -> None:
    """Draw the scenes of the demo's trainA by day and by night, into folder/trainA and trainB.

    Unlike the demo's own training sets, these are true pairs, with equal file names. None of them
    is a test scene. JPEG files as those of `demo_root`.
    """
    _draw(folder, [("trainA", "trainB", _TRAIN_A, i) for i in range(count)], seed, "scenes")


def _draw_all(folder: Path, n_train: int, n_test: int, seed: int, builtin: str) -> None:
    jobs: list[_Job] = [("trainA", None, _TRAIN_A, i) for i in range(n_train)]
    jobs += [(None, "trainB", _TRAIN_B, i) for i in range(n_train)]
    jobs += [("testA", "testB", _TEST, i) for i in range(n_test)]
    _draw(folder, jobs, seed, builtin)


def _draw(folder: Path, jobs: list[_Job], seed: int, builtin: str) -> None:
    """Draw each job's scene in domains a and b, into the subfolders that the job names."""
    render_a, render_b, extension = _renderings(builtin)
    for name in {name for split_a, split_b, *_ in jobs for name in (split_a, split_b) if name}:
        (folder / name).mkdir(parents=True)
    for split_a, split_b, stream, index in progress.bar(
        jobs, desc="drawing demo scenes", unit="scene"
    ):
        scene = scenes.make_scene(np.random.default_rng([seed, stream, index]))
        for split, render in ((split_a, render_a), (split_b, render_b)):
            if split:
                _save(render(scene), folder / split / f"{index:04d}.{extension}")


def _publish(partial: Path, root: Path) -> None:
    try:
        os.rename(partial, root)
    except OSError:
        if not root.is_dir():  # otherwise another process was faster, with the same images
            raise


def _save(pixels: np.ndarray, path: Path) -> None:
    # JPEG as 4:4:4: chroma subsampling would smear the small coloured shapes. PNG is lossless.
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)
