"""The objects of a drawn scene: houses, trees and the road.

They are drawn with Pillow at `SCALE` times the scene's size, then averaged down.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

WIDTH, HEIGHT = 96, 72  # of a scene
SCALE = 4

_Point = tuple[float, float]

_WALLS = ["#f2ead8", "#d9694a", "#e8c06a", "#8fb4cf", "#c9d8b0", "#d8a3a0", "#f7f7f2", "#a9745a"]
_ROOFS = ["#8c3b2c", "#59606b", "#a8542f", "#6b4630", "#3f5f6e", "#b5473c"]
_LEAVES = ["#3f7a35", "#5c8f3a", "#2f6b4a", "#7d9a38", "#c9822e", "#b8552f"]
_CONIFERS = ["#24583f", "#2d6138", "#1f4f4a"]
_GLASS = np.array([0.17, 0.21, 0.28], np.float32)


class Surface(IntEnum):
    """Surfaces of objects, by their number in `Scene.things`."""

    ROAD = 1
    WALL = 2
    ROOF = 3
    WINDOW = 4
    LEAVES = 5
    TRUNK = 6


class Things:
    """A canvas for objects, at `SCALE` times the scene's size.

    Every shape covers what was drawn before, lit windows included, so objects are drawn from far
    to near. Positions are in pixels of the finished image.
    """

    def __init__(self, light: int) -> None:
        self.light = light
        size = (WIDTH * SCALE, HEIGHT * SCALE)
        self.image = Image.new("RGB", size)
        planes = (Image.new("L", size) for _ in range(4))
        self.mask, self.panes, self.surfaces, self.shadow = planes
        images = (self.image, self.mask, self.panes, self.surfaces)
        self._pens = [ImageDraw.Draw(image) for image in images]
        self._shadow_pen = ImageDraw.Draw(self.shadow)

    def polygon(self, points: Iterable[_Point], colour: np.ndarray, surface: Surface) -> None:
        self._shape("polygon", [(x * SCALE, y * SCALE) for x, y in points], colour, surface)

    def leaves(self, x: float, y: float, radius: float, colour: np.ndarray) -> None:
        x, y, radius = x * SCALE, y * SCALE, radius * SCALE
        box = [x - radius, y - radius, x + radius, y + radius]
        self._shape("ellipse", box, colour, Surface.LEAVES)

    def cast_shadow(self, points: Iterable[_Point]) -> None:
        self._shadow_pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=255)

    def over(self, land: np.ndarray) -> np.ndarray:
        """Return `land` [H, W, 3] with the objects and their shadows drawn over it."""
        land = land * (1 - 0.38 * blur(self.plane(self.shadow), 0.7))[..., None]
        premultiplied = np.asarray(self.image.reduce(SCALE), np.float32) / 255
        return land * (1 - self.plane(self.mask))[..., None] + premultiplied

    @staticmethod
    def plane(image: Image.Image) -> np.ndarray:
        return np.asarray(image.reduce(SCALE), np.float32) / 255

    def _shape(self, kind: str, at: list, colour: np.ndarray, surface: Surface) -> None:
        rgb = tuple(int(v) for v in (colour * 255).clip(0, 255))
        pane = 255 * (surface is Surface.WINDOW)
        for pen, fill in zip(self._pens, (rgb, 255, pane, int(surface)), strict=True):
            getattr(pen, kind)(at, fill=fill)


def fill(rng: np.random.Generator, things: Things, horizon: float, bottom: float) -> None:
    """Place houses and trees between the horizon and row `bottom`, the far ones first."""
    top = horizon + 7
    feet = np.sort(rng.uniform(top, max(bottom - 1, top + 3), rng.integers(9, 16)))
    houses = set(rng.choice(len(feet), rng.integers(2, 5), replace=False).tolist())
    species = rng.choice(["leaf", "conifer"], p=[0.6, 0.4])
    house_x = rng.permutation(np.linspace(4, WIDTH - 20, 5)) + rng.uniform(-5, 5, 5)
    taken = 0
    for i, foot in enumerate(feet):
        near = 0.55 + 0.75 * (foot - top) / (HEIGHT - top)
        if i in houses:
            _house(rng, things, house_x[taken], foot, near)
            taken += 1
        elif (species == "leaf") == (rng.uniform() < 0.8):
            _leaf_tree(rng, things, rng.uniform(0, WIDTH), foot, near)
        else:
            _conifer(rng, things, rng.uniform(0, WIDTH), foot, near)


def _house(rng: np.random.Generator, things: Things, x: float, foot: float, near: float) -> None:
    """Draw a gabled house: its front towards us, a long side under the roof to the right."""
    wall, roof = rgb(rng.choice(_WALLS)), rgb(rng.choice(_ROOFS))
    front, side = rng.uniform(9, 12) * near, rng.uniform(11, 17) * near
    high, gable = rng.uniform(8, 13) * near, rng.uniform(5, 8) * near
    top, apex, corner, end = foot - high, foot - high - gable, x + front, x + front + side
    front_light, side_light = (0.72, 1.0) if things.light > 0 else (1.0, 0.72)
    reach = -things.light * high * 0.8
    things.cast_shadow([(x, foot), (end, foot), (end + reach, foot + high * 0.3),
                        (x + reach, foot + high * 0.3)])  # fmt: skip
    middle, over = x + front / 2, 0.8 * near
    things.polygon([(corner, top), (end, top), (end, foot), (corner, foot)],
                   wall * side_light, Surface.WALL)  # fmt: skip
    things.polygon([(x, foot), (x, top), (middle, apex), (corner, top), (corner, foot)],
                   wall * front_light, Surface.WALL)  # fmt: skip
    things.polygon([(middle, apex - over), (end - front / 2 + over, apex - over),
                    (end + over, top + over), (corner + over, top + over)],
                   roof * (0.62 + 0.38 * side_light), Surface.ROOF)  # fmt: skip
    things.polygon([(middle, apex - over), (middle, apex + over), (x - over, top + 2 * over),
                    (x - over, top + over)], roof * 0.8 * front_light, Surface.ROOF)  # fmt: skip
    width, tall = 2.5 * near, 3.3 * near
    for floor in range(1 + (high > 10.5 * near)):
        y = top + (1.6 + 4.6 * floor) * near
        for column in np.linspace(corner, end, 2 + int(side / (5 * near)))[1:-1]:
            _window(things, column, y, width, tall)
        _window(things, middle, y, width, tall)
    _window(things, middle, top - 0.1 * gable - tall * 0.6, width * 0.8, tall * 0.7)


def _window(things: Things, x: float, y: float, width: float, tall: float) -> None:
    x -= width / 2
    box = [(x, y), (x + width, y), (x + width, y + tall), (x, y + tall)]
    things.polygon(box, _GLASS, Surface.WINDOW)


def _leaf_tree(
    rng: np.random.Generator, things: Things, x: float, foot: float, near: float
) -> None:
    leaf, size = rgb(rng.choice(_LEAVES)) * rng.uniform(0.85, 1.1), rng.uniform(4, 6.5) * near
    trunk, crown = 0.16 * size, foot - 1.5 * size
    _tree_shadow(things, x, foot, size)
    things.polygon([(x - trunk, crown), (x + trunk, crown), (x + trunk, foot), (x - trunk, foot)],
                   rgb("#5a4030"), Surface.TRUNK)  # fmt: skip
    puffs = rng.uniform(-0.5, 0.5, (5, 2)) * size
    for tone, shift, part in ((0.62, 0.0, 0.75), (0.85, 0.14, 0.62), (1.12, 0.38, 0.34)):
        for dx, dy in puffs:
            things.leaves(x + dx + things.light * shift * size, crown + dy - shift * 0.6 * size,
                          part * size, leaf * tone)  # fmt: skip


def _conifer(rng: np.random.Generator, things: Things, x: float, foot: float, near: float) -> None:
    needle, high = rgb(rng.choice(_CONIFERS)) * rng.uniform(0.85, 1.15), rng.uniform(12, 19) * near
    _tree_shadow(things, x, foot, high / 3)
    for tier in range(3):
        low, top = foot - high * (0.06 + 0.27 * tier), foot - high * (0.52 + 0.24 * tier)
        half = high * (0.24 - 0.05 * tier)
        for side in (-1, 1):
            tone = 1.35 if side == things.light else 0.75
            things.polygon([(x, top), (x + side * half, low), (x, low + 0.04 * high)],
                           needle * tone, Surface.LEAVES)  # fmt: skip


def _tree_shadow(things: Things, x: float, foot: float, size: float) -> None:
    tip = x - things.light * 2.2 * size
    things.cast_shadow([(x - 0.5 * size, foot), (x + 0.5 * size, foot), (tip, foot + 0.7 * size)])


def draw_road(rng: np.random.Generator, things: Things, horizon: float) -> None:
    """Draw a road that winds from below the row `horizon` to the lower edge."""
    top, near, far = horizon + 9, rng.uniform(0.2, 0.8) * WIDTH, rng.uniform(0.2, 0.8) * WIDTH
    t = np.linspace(0, 1, 14)
    middle = far + (near - far) * t + np.sin(t * 5 + rng.uniform(0, 6)) * 7 * (1 - t)
    y, half = top + (HEIGHT + 2 - top) * t, 0.8 + 9 * t**1.4
    edge = list(zip(middle - half, y, strict=True)) + list(
        zip((middle + half)[::-1], y[::-1], strict=True)
    )
    things.polygon(edge, rgb("#c8b594"), Surface.ROAD)


def blur(plane: np.ndarray, radius: float) -> np.ndarray:
    """Return a plane [H, W] of values in [0, 1] blurred by a Gaussian of `radius` pixels."""
    image = Image.fromarray((plane * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def rgb(name: str) -> np.ndarray:
    """Return a colour such as "#c8b594" as float32 [3] in [0, 1]."""
    return np.array(ImageColor.getrgb(str(name)), np.float32) / 255
