"""Flat colour maps of the drawn scenes: each kind of surface in one colour of its own.

A drawn equivalent of the paper's satellite images and street maps: each scene has exactly one
correct map. Maps have no shading, texture or blended edges, so a pixel is either right or wrong.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from fastunit.data import scenes
from fastunit.data.scene_objects import SCALE, Surface
from fastunit.data.scenes import Scene

REDUCE = 2  # factor by which the images of both domains are smaller than a scene
_CLOUD, _SUN, _WATER, _LAND, _SKY = range(7, 12)

COLOURS = {  # number of a surface -> sRGB
    Surface.ROAD: "#e0c896",
    Surface.WALL: "#e07850",
    Surface.ROOF: "#803020",
    Surface.WINDOW: "#202840",
    Surface.LEAVES: "#206038",
    Surface.TRUNK: "#584028",
    _CLOUD: "#ffffff",
    _SUN: "#fff060",
    _WATER: "#3868a8",
    _LAND: "#90c050",
    _SKY: "#80b8f0",
}


def day_image(scene: Scene) -> np.ndarray:
    """Return the scene by day as uint8 [36, 48, 3], `scenes.render` averaged down."""
    day = Image.fromarray(scenes.render(scene, night=False))
    return np.asarray(day.reduce(REDUCE))


def flat_map(scene: Scene) -> np.ndarray:
    """Return the scene's map as uint8 [36, 48, 3], in the colours of `COLOURS`."""
    palette = np.zeros((max(COLOURS) + 1, 3), np.uint8)
    for number, name in COLOURS.items():
        palette[number] = ImageColor.getrgb(name)
    return palette[_surfaces(scene)]


def _surfaces(scene: Scene) -> np.ndarray:
    """Return the number of the frontmost surface at each pixel's centre, [36, 48]."""
    step = SCALE * REDUCE
    things = scene.things[step // 2 :: step, step // 2 :: step]
    found = np.full(things.shape, _SKY)
    # From the farthest layer to the nearest, as `scenes.render` blends them.
    for number, opacity in ((_SUN, scene.disc), (_CLOUD, scene.cloud), (_LAND, scene.cover)):
        found[_halved(opacity) >= 0.5] = number
    found = np.where(things > 0, things, found)
    found[_halved(scene.water) >= 0.5] = _WATER
    return found


def _halved(plane: np.ndarray) -> np.ndarray:
    """Return a plane [H, W] averaged over blocks of REDUCE x REDUCE pixels."""
    height, width = plane.shape[0] // REDUCE, plane.shape[1] // REDUCE
    return plane.reshape(height, REDUCE, width, REDUCE).mean((1, 3))
