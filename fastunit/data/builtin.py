"""Built-in domains of drawn landscapes, as real picture files.

`scenes`: by day (A) and by night (B), JPEG of 96x72 pixels (width x height). `scene_maps`: by day
(A) and as flat colour maps (B), PNG of 48x36 pixels.
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
# What `demo_root` draws by default in either domain, for those who only want to know.
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
        return scene_maps.picture, scene_maps.flat_map, "png"
    return partial(scenes.render, night=False), partial(scenes.render, night=True), "jpg"


def size(builtin: str) -> tuple[int, int]:
    """Return the height and width of a pair of built-in domains' pictures, in pixels."""
    reduced = scene_maps.REDUCE if builtin == "scene_maps" else 1
    return scenes.HEIGHT // reduced, scenes.WIDTH // reduced


def demo_root(
    n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 2017, builtin: str = "scenes"
) -> Path:
    """Return the folder of a pair of built-in domains, drawing them first if they are not there.

    It holds ``trainA trainB testA testB``, files as told above for `builtin`.
    trainA and trainB show different scenes (`n_train` each, unpaired); a test scene (`n_test`)
    has the same file name in testA and testB, so that translations can be measured. The same
    arguments always give the same pictures. The folder appears only when it is complete.

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

    They are true pairs by their file names, which the demo's own training sets are not, and none
    is among its test scenes. JPEG files as those of `demo_root`.
    """
    _draw(folder, [("trainA", "trainB", _TRAIN_A, i) for i in range(count)], seed, "scenes")


def _draw_all(folder: Path, n_train: int, n_test: int, seed: int, builtin: str) -> None:
    jobs: list[_Job] = [("trainA", None, _TRAIN_A, i) for i in range(n_train)]
    jobs += [(None, "trainB", _TRAIN_B, i) for i in range(n_train)]
    jobs += [("testA", "testB", _TEST, i) for i in range(n_test)]
    _draw(folder, jobs, seed, builtin)


def _draw(folder: Path, jobs: list[_Job], seed: int, builtin: str) -> None:
    """Draw each job's scene, as a and as b, into the subfolders that it names."""
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
        if not root.is_dir():  # else another process was first, with the same pictures
            raise


def _save(picture: np.ndarray, path: Path) -> None:
    # For JPEG, 4:4:4: chroma subsampling would smear the small coloured shapes. PNG is lossless.
    Image.fromarray(picture).save(path, quality=95, subsampling=0)
