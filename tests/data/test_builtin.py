"""The built-in demo domains: what the folder holds, and that it is whole or absent."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastunit.common.errors import ConfigError, DataError
from fastunit.data import builtin, scenes, validation

SPLITS = ["testA", "testB", "trainA", "trainB"]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, np.float32)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_folder_holds_jpeg_files_of_the_promised_size_and_number(cache: Path) -> None:
    root = builtin.demo_root(n_train=3, n_test=2)
    assert sorted(p.name for p in root.iterdir()) == SPLITS
    for split, count in (("trainA", 3), ("trainB", 3), ("testA", 2), ("testB", 2)):
        files = sorted((root / split).iterdir())
        assert [p.name for p in files] == [f"{i:04d}.jpg" for i in range(count)]
        for path in files:
            with Image.open(path) as picture:
                assert (picture.format, picture.size, picture.mode) == ("JPEG", (96, 72), "RGB")
    assert [p.name for p in cache.iterdir()] == [root.name], "a temporary folder was left"


def test_test_scenes_are_pairs_and_training_scenes_are_not() -> None:
    root, count = builtin.demo_root(n_train=8, n_test=8), 8

    def edges(split: str) -> list[np.ndarray]:
        pictures = [_pixels(root / split / f"{i:04d}.jpg") for i in range(count)]
        land = [picture.mean(-1)[34:64] for picture in pictures]  # hills and houses, not the sky
        return [np.abs(np.diff(grey, axis=1)).ravel() for grey in land]

    def likeness(split: str) -> np.ndarray:
        """Return the correlation of every picture of a with every one of b."""
        return np.corrcoef(edges(f"{split}A"), edges(f"{split}B"))[:count, count:]

    test, own = likeness("test"), np.eye(count, dtype=bool)
    assert test[own].min() > 0.5
    assert test[~own].max() < 0.25
    assert likeness("train").max() < 0.25


def test_the_check_before_training_accepts_every_file(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="images are checked with NVIDIA DALI")
    root = builtin.demo_root(n_train=3, n_test=2)
    rule = validation.SizeRule(new_size=64, crop=(64, 64))
    groups = {split: (sorted((root / split).iterdir()), rule) for split in SPLITS}
    accepted = validation.validate_all(
        groups, workers=1, skip_bad=False, index=tmp_path / "images.json"
    )
    assert accepted == {split: tuple(files) for split, (files, _) in groups.items()}
    assert sum(map(len, accepted.values())) == 10


def test_the_counts_told_are_those_drawn_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "make_scene", lambda rng: None)
    monkeypatch.setattr(scenes, "render", lambda scene, night: None)
    monkeypatch.setattr(builtin, "_save", lambda picture, path: path.touch())
    root = builtin.demo_root()
    drawn = {f"{s[:-1]}_{s[-1].lower()}": len(list((root / s).iterdir())) for s in SPLITS}
    assert drawn == builtin.DEMO_COUNTS
    assert drawn == {"train_a": 400, "train_b": 400, "test_a": 64, "test_b": 64}


def test_a_log_file_gets_few_lines_of_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "render", lambda scene, night: time.sleep(0.15))
    monkeypatch.setattr(builtin, "_save", lambda picture, path: None)
    builtin.demo_root(n_train=2, n_test=1)
    log = capsys.readouterr().err
    assert "3/5" not in log, "refreshed at every scene"
    assert log.count("drawing demo scenes") == 2, "one at the start and one at the end"
    assert "5/5" in log


def test_domain_a_is_day_and_domain_b_is_night() -> None:
    root = builtin.demo_root(n_train=6, n_test=6)
    bright = {s: [_pixels(path).mean() for path in (root / s).iterdir()] for s in SPLITS}
    assert min(bright["trainA"] + bright["testA"]) > 110
    assert max(bright["trainB"] + bright["testB"]) < 70


def test_no_scene_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    make = scenes.make_scene

    def record(rng: np.random.Generator) -> scenes.Scene:
        scene = make(rng)
        drawn.append(scene.land.tobytes())
        return scene

    monkeypatch.setattr(scenes, "make_scene", record)
    builtin.demo_root(n_train=4, n_test=3)
    assert len(drawn) == 4 + 4 + 3
    assert len(set(drawn)) == len(drawn)


def test_leaving_a_picture_unchanged_is_far_from_right() -> None:
    root = builtin.demo_root(n_train=1, n_test=12)
    differences = [
        np.abs(_pixels(root / "testA" / p.name) - _pixels(p)).mean() / 127.5
        for p in (root / "testB").iterdir()
    ]
    print(f"mean absolute difference of day and night on [-1, 1]: {np.mean(differences):.3f}")
    assert min(differences) > 0.45


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = builtin.demo_root(n_train=2, n_test=2)
    other = builtin.demo_root(n_train=2, n_test=2, seed=7)
    monkeypatch.setenv("FASTUNIT_CACHE", str(tmp_path / "elsewhere"))
    again = builtin.demo_root(n_train=2, n_test=2)
    assert again != first
    assert _contents(again) == _contents(first)
    assert other != first
    assert all(_contents(other)[name] != data for name, data in _contents(first).items())


def test_a_second_call_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    root = builtin.demo_root(n_train=1, n_test=1)
    monkeypatch.setattr(scenes, "render", None)  # drawing would raise TypeError
    assert builtin.demo_root(n_train=1, n_test=1) == root


@pytest.mark.parametrize("change", [{"n_train": 3}, {"n_test": 3}, {"seed": 1}])
def test_other_parameters_make_another_folder(change: dict[str, int]) -> None:
    settings = {"n_train": 1, "n_test": 1, "seed": 2017}
    assert builtin.demo_root(**settings) != builtin.demo_root(**settings | change)


def test_another_version_of_the_drawing_makes_another_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = builtin.demo_root(n_train=1, n_test=1)
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert builtin.demo_root(n_train=1, n_test=1) != before


def test_an_interrupted_generation_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = builtin._save, []

    def interrupted(picture: np.ndarray, path: Path) -> None:
        if len(saved) == 4:
            raise KeyboardInterrupt
        save(picture, path)
        saved.append(path)

    monkeypatch.setattr(builtin, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        builtin.demo_root(n_train=3, n_test=2)
    assert len(saved) == 4
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(builtin, "_save", save)
    assert len(_contents(builtin.demo_root(n_train=3, n_test=2))) == 10


def test_what_a_killed_process_left_is_not_taken_for_the_data(cache: Path) -> None:
    name = f"demo-v{scenes.VERSION}-1-1-2017"
    (cache / f".{name}.0123" / "trainA").mkdir(parents=True)
    root = builtin.demo_root(n_train=1, n_test=1)
    assert root == cache / name
    assert len(_contents(root)) == 4


def test_racers_all_end_with_the_whole_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, barrier = builtin._save, threading.Barrier(3, timeout=60)

    def save_together(picture: np.ndarray, path: Path) -> None:
        if path.parent.name == "testB":  # the last file: all are drawing, none has renamed yet
            barrier.wait()
        save(picture, path)

    monkeypatch.setattr(builtin, "_save", save_together)
    with ThreadPoolExecutor(3) as pool:
        racers = [pool.submit(builtin.demo_root, n_train=1, n_test=1) for _ in range(3)]
        (root,) = {racer.result() for racer in racers}
    assert len(_contents(root)) == 4
    assert list(cache.iterdir()) == [root]


@pytest.mark.parametrize("change", [{"n_train": 0}, {"n_test": -1}, {"seed": -5}])
def test_wrong_arguments_are_named(change: dict[str, int], cache: Path) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        builtin.demo_root(**change)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "Not a directory"), ("x" * 300, "File name too long"), ("locked", "Permission")],
)
def test_a_cache_that_cannot_be_used_is_named(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "locked").mkdir(mode=0o500)
    if name == "locked" and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    cache = tmp_path / name
    monkeypatch.setenv("FASTUNIT_CACHE", str(cache))
    with pytest.raises(DataError, match=f"{re.escape(str(cache))}: {reason}.*FASTUNIT_CACHE"):
        builtin.demo_root(n_train=1, n_test=1)


def test_a_full_disk_is_named_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(picture: np.ndarray, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(builtin, "_save", full)
    with pytest.raises(DataError, match=f"{re.escape(str(cache))}: No space left"):
        builtin.demo_root(n_train=1, n_test=1)
    assert list(cache.iterdir()) == []


def _first(start: int, wanted: str) -> scenes.Scene:
    for seed in range(start, start + 50):
        scene = scenes.make_scene(np.random.default_rng(seed))
        if scene.water.any() == (wanted == "lake"):
            return scene
    raise AssertionError(f"no scene with a {wanted} in 50")


@pytest.mark.parametrize("wanted", ["lake", "road"])
def test_night_is_one_colour_map_away_from_windows_sky_and_water(wanted: str) -> None:
    scene = _first(100, wanted)
    day, night = (scenes.render(scene, night=flag).astype(np.float32) for flag in (False, True))
    far_from_windows = scenes.blur(scene.lit, 6) == 0
    plain = (scene.cover == 1) & far_from_windows & (scene.water == 0) & (day.max(-1) < 255)
    assert plain.sum() > 300
    inputs = np.concatenate([day[plain], np.ones((plain.sum(), 1), np.float32)], 1)
    fit = np.linalg.lstsq(inputs, night[plain], rcond=None)[0]
    assert np.abs(inputs @ fit - night[plain]).max() < 1.5  # rounding to whole numbers, twice
    assert np.linalg.svd(fit[:3], compute_uv=False).min() > 0.1, "day colours cannot be recovered"


def test_windows_are_dark_by_day_and_lit_at_night() -> None:
    scene = scenes.make_scene(np.random.default_rng(3))
    panes = (scene.lit == 1) & (scene.water == 0)
    assert panes.sum() >= 4
    day, night = (scenes.render(scene, night=flag) for flag in (False, True))
    assert day[panes].max() < 90
    assert night[panes][:, 0].min() > 240


def test_the_moon_stands_where_the_sun_was() -> None:
    scene = _first(0, "road")
    day, night = (scenes.render(scene, night=flag).astype(int) for flag in (False, True))
    disc = (scene.disc == 1) & (scene.cloud == 0) & (scene.cover == 0)
    assert disc.sum() > 20
    assert (day[disc][:, 0] - day[disc][:, 2] > 50).all(), "the sun is not yellow"
    assert (night[disc][:, 2] >= night[disc][:, 0]).all(), "the moon is not white"
    sky = (scene.cover == 0) & (scene.halo < 0.01) & (scene.stars == 0)
    assert night[sky].max() < 130
    assert day[sky].mean() > 160
