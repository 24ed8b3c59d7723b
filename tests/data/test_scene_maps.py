"""Flat colour maps of drawn scenes: what is where, and that the scenes stay as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from fastunit.data import builtin, scene_maps, scenes
from fastunit.data.scene_objects import Surface

# SHA-256 of three scenes by day and night, as version 2 of the drawing made them before the maps.
DRAWN = "57660bf17f7077a33f95b45633b98b0874d1b58e8f146dec8b9fb0ef65d01c1f"
COLOURS = {number: ImageColor.getrgb(name) for number, name in scene_maps.COLOURS.items()}


def _scene(seed: int) -> scenes.Scene:
    return scenes.make_scene(np.random.default_rng(seed))


def _halved(plane: np.ndarray) -> np.ndarray:
    return plane.reshape(36, 2, 48, 2).mean((1, 3))


def test_the_scenes_are_drawn_as_ever_to_the_bit() -> None:
    pixels = hashlib.sha256()
    for seed in range(3):
        for night in (False, True):
            pixels.update(scenes.render(_scene(seed), night=night).tobytes())
    assert pixels.hexdigest() == DRAWN


def test_a_map_has_the_size_of_its_picture_and_only_the_colours_of_surfaces() -> None:
    seen = set()
    for seed in range(12):
        scene = _scene(seed)
        drawn, picture = scene_maps.flat_map(scene), scene_maps.day_image(scene)
        assert drawn.shape == picture.shape == (36, 48, 3)
        assert drawn.dtype == picture.dtype == np.uint8
        seen |= set(map(tuple, drawn.reshape(-1, 3).tolist()))
    assert seen == set(COLOURS.values()), "twelve scenes show every surface, and nothing else"


def test_no_two_surfaces_have_colours_that_count_as_one() -> None:
    colours = np.array(list(COLOURS.values()))
    apart = np.abs(colours[:, None] - colours[None]).max(-1)
    assert apart[~np.eye(len(colours), dtype=bool)].min() > 2 * 16


@pytest.mark.parametrize("seed", range(4))
def test_every_layer_is_where_it_is_drawn(seed: int) -> None:
    scene = _scene(seed)
    drawn = scene_maps.flat_map(scene)

    def has(number: int, where: np.ndarray) -> bool:
        return bool((drawn[where] == COLOURS[number]).all())

    land, water, cloud, disc = map(_halved, (scene.cover, scene.water, scene.cloud, scene.disc))
    assert has(scene_maps._WATER, water == 1)
    assert has(scene_maps._SKY, (land == 0) & (water == 0) & (cloud < 0.5) & (disc < 0.5))
    assert has(scene_maps._CLOUD, (land == 0) & (cloud > 0.5))
    assert has(scene_maps._SUN, (land == 0) & (cloud < 0.5) & (disc > 0.5))
    blocks = scene.things.reshape(36, 8, 48, 8)
    nothing = (blocks == 0).all((1, 3))
    assert has(scene_maps._LAND, nothing & (land == 1) & (water == 0))
    for surface in Surface:
        assert has(surface, (blocks == surface).all((1, 3)) & (water == 0))


def test_windows_of_the_map_are_those_that_are_lit_at_night() -> None:
    scene = _scene(3)
    panes = scene.things == Surface.WINDOW
    share = panes.reshape(scenes.HEIGHT, 4, scenes.WIDTH, 4).mean((1, 3))
    assert panes.sum() > 100
    assert np.abs(share - scene.lit).max() < 0.003  # of 255 levels


def test_the_picture_is_the_scene_by_day_at_half_the_size() -> None:
    scene = _scene(0)
    day = scenes.render(scene, night=False).reshape(36, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(scene_maps.day_image(scene) - day).max() <= 0.5


def test_the_built_in_domains_are_lossless_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTUNIT_CACHE", str(tmp_path))
    root = builtin.demo_root(n_train=2, n_test=2, builtin="scene_maps")
    assert root != builtin.demo_root(n_train=2, n_test=2), "the demo's own folder"
    for index in range(2):
        scene = scenes.make_scene(np.random.default_rng([2017, 2, index]))
        for split, render in (("testA", scene_maps.day_image), ("testB", scene_maps.flat_map)):
            with Image.open(root / split / f"{index:04d}.png") as picture:
                assert np.array_equal(np.asarray(picture), render(scene))
    counts = {split: len(list((root / split).iterdir())) for split in ("trainA", "trainB")}
    assert counts == {"trainA": 2, "trainB": 2}
