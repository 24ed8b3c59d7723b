"""Drawn landscapes for the demo domains, each of which can be rendered by day and by night.

A scene is drawn once, in daylight colours, as a stack of layers (`Scene`). Day and night are two
renderings of that stack. At night every surface is darkened by one fixed, invertible colour map,
so that day colours can be recovered; the sky, the moon in place of the sun, stars and lit windows
change as well. It is easy to see whether a translation is right, and a small network learns it in
minutes on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastunit.data.scene_objects import HEIGHT, WIDTH, Things, blur, draw_road, fill, rgb

VERSION = 2  # increase with any change to the drawing, so that cached images are drawn again

_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)

_MEADOWS = ["#8dba4e", "#a5b955", "#74ad52", "#c2b45c", "#9cc46a"]
_HILLS = ["#5f9a58", "#7a9b4f", "#4f8a6a", "#93a050", "#6a8f5f"]
_SKIES = [("#3f86d6", "#cfe6f5"), ("#5a9be0", "#e6eef2"), ("#4a90c8", "#f3e3c8")]  # zenith, horizon
_LAMP = np.array([1.0, 0.80, 0.38], np.float32)
_SUN, _MOON = np.array([1.0, 0.95, 0.70], np.float32), np.array([0.93, 0.95, 0.98], np.float32)


@dataclass(frozen=True)
class Scene:
    """Layers of one scene: float32 in [0, 1], planes [H, W], colours [H, W, 3]."""

    sky: np.ndarray  # by day, without sun and clouds
    cloud: np.ndarray  # opacity of the clouds
    cloud_light: np.ndarray  # brightness within the clouds
    disc: np.ndarray  # opacity of the sun or moon
    halo: np.ndarray  # light around it
    stars: np.ndarray
    land: np.ndarray  # everything below the sky, by day
    cover: np.ndarray  # opacity of `land`
    lit: np.ndarray  # window panes
    water: np.ndarray  # opacity of the lake, all 0 in a scene with a road
    mirror: tuple[np.ndarray, np.ndarray]  # row and column that each pixel of the lake reflects
    things: np.ndarray  # uint8 [4H, 4W]: the `Surface` of each point, 0 where nothing stands


# ---- rendering


def render(scene: Scene, *, night: bool) -> np.ndarray:
    """Return the scene as uint8 [H, W, 3], by day or by night."""
    image = _blend(_render_sky(scene, night), _darken(scene.land, night), scene.cover)
    if night:
        image = _blend(image, _LAMP, scene.lit)
        image = image + 0.5 * blur(scene.lit, 2.5)[..., None] * _LAMP
    if scene.water.any():
        blue = _darken(np.array([0.26, 0.50, 0.72], np.float32), night)
        image = _blend(image, 0.6 * image[scene.mirror] + 0.4 * blue, scene.water)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _render_sky(scene: Scene, night: bool) -> np.ndarray:
    # A steeper map than the land's: the sky must end up darker than the moonlit meadows.
    sky = scene.sky * np.array([0.12, 0.17, 0.36], np.float32) if night else scene.sky
    if night:
        sky = sky + scene.stars[..., None] * 0.75
    glow = np.array([0.45, 0.50, 0.60] if night else [0.55, 0.45, 0.20], np.float32)
    sky = sky + scene.halo[..., None] * glow * (0.6 if night else 0.5)
    sky = _blend(sky, _MOON if night else _SUN, scene.disc)
    white = np.array([0.24, 0.28, 0.44] if night else [1.0, 1.0, 1.0], np.float32)
    return _blend(sky, scene.cloud_light[..., None] * white, scene.cloud)


def _darken(colour: np.ndarray, night: bool) -> np.ndarray:
    """Return a surface's colour at night: dim and blue, an invertible map of its day colour."""
    if not night:
        return colour
    gray = colour.mean(-1, keepdims=True)
    return 0.02 + (0.8 * colour + 0.2 * gray) * np.array([0.30, 0.36, 0.50], np.float32)


def _blend(under: np.ndarray, over: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return under + (over - under) * opacity[..., None]


def make_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene; generators with the same seed give the same scene."""
    horizon = rng.uniform(0.42, 0.56) * HEIGHT
    sun_x, sun_y = rng.uniform(8, WIDTH - 8), rng.uniform(7, 0.6 * horizon)
    light = 1 if sun_x > WIDTH / 2 else -1  # the side that the light comes from
    zenith, low = (rgb(name) for name in _SKIES[rng.integers(len(_SKIES))])
    sky = zenith + (low - zenith) * np.clip(_Y / horizon, 0, 1)[..., None] ** 1.3
    cloud, cloud_light = _clouds(rng, horizon)
    distance = np.hypot(_X - sun_x, _Y - sun_y)
    land, cover = _hills(rng, horizon, light, low)
    shore = _shore(rng)
    things = Things(light)
    if shore is None:
        draw_road(rng, things, horizon)
    fill(rng, things, horizon, HEIGHT if shore is None else shore.min())
    stars = _stars(rng, horizon)
    water, mirror = _lake(rng, shore)
    return Scene(
        sky=sky, cloud=cloud, cloud_light=cloud_light, stars=stars,
        disc=np.clip(5.3 - distance, 0, 1), halo=np.exp(-((distance / 11) ** 2)),
        land=things.over(land), cover=np.maximum(cover, things.plane(things.mask)),
        lit=things.plane(things.panes), water=water, mirror=mirror,
        things=np.asarray(things.surfaces),
    )  # fmt: skip


def _clouds(rng: np.random.Generator, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    opacity, light = np.zeros_like(_X), np.ones_like(_X)
    for _ in range(rng.integers(1, 5)):
        x, y, size = rng.uniform(0, WIDTH), rng.uniform(4, 0.75 * horizon), rng.uniform(5, 11)
        for offset in rng.uniform(-1.3, 1.3, 5):
            wide, high = size * rng.uniform(0.5, 0.8), size * rng.uniform(0.22, 0.42)
            dx, dy = (_X - x - offset * size) / wide, (_Y - y + high * 0.5) / high
            puff = np.clip(1.6 - 1.6 * (dx * dx + dy * dy), 0, 1)
            base = np.clip((_Y - y + 1) / (0.4 * size), 0, 1)
            light = np.where(puff > opacity, 1 - 0.22 * base, light)
            opacity = np.maximum(opacity, puff)
    return 0.92 * opacity, light


def _hills(
    rng: np.random.Generator, horizon: float, light: int, haze: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return land [H, W, 3] and its opacity [H, W]: three ranges, the nearest a meadow."""
    land, cover = np.zeros((HEIGHT, WIDTH, 3), np.float32), np.zeros_like(_X)
    for depth in range(3):
        name = rng.choice(_MEADOWS if depth == 2 else _HILLS)
        colour = rgb(name) + (haze * 0.9 - rgb(name)) * (0.55, 0.25, 0.0)[depth]
        ridge = horizon + (-6, 0, 6)[depth] + _ridge(rng, (9.0, 6.0, 2.5)[depth])
        opacity = np.clip(_Y - ridge + 0.5, 0, 1)
        slope = np.gradient(ridge)[None] * light  # ridges falling away from the light are darker
        shade = 1 - 0.35 * np.tanh(-1.5 * slope) * np.exp(-(_Y - ridge) / 9)
        texture = 1 + 0.13 * _noise(rng, (18, 8)) + 0.09 * _noise(rng, (36, 48))
        surface = colour * (shade * texture)[..., None]
        # The farthest range fills its layer: `cover` alone cuts it out against the sky.
        land = _blend(land, surface, opacity) if depth else surface
        cover = np.maximum(cover, opacity)
    return land, cover


def _ridge(rng: np.random.Generator, height: float) -> np.ndarray:
    x = np.arange(WIDTH, dtype=np.float32)
    waves = [(height * 0.6, 55), (height * 0.4, 26), (height * 0.12, 9)]
    first, *rest = (a * np.sin(2 * np.pi * (x / w + rng.uniform())) for a, w in waves)
    return sum(rest, start=first)


def _noise(rng: np.random.Generator, cells: tuple[int, int]) -> np.ndarray:
    """Return smooth noise [H, W] in about [-1, 1], with `cells` (rows, columns) of detail."""
    grid = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _stars(rng: np.random.Generator, horizon: float) -> np.ndarray:
    stars = np.zeros_like(_X)
    rows, columns = rng.uniform(0, 0.8 * horizon, 22), rng.uniform(0, WIDTH, 22)
    stars[rows.astype(int), columns.astype(int)] = rng.uniform(0.3, 1, 22)
    return stars


def _shore(rng: np.random.Generator) -> np.ndarray | None:
    """Return the row [W] at which a lake begins, or None for a scene with a road."""
    if rng.uniform() < 0.45:
        return None
    return rng.uniform(0.76, 0.84) * HEIGHT + 0.6 * _ridge(rng, 2.5)


def _lake(
    rng: np.random.Generator, shore: np.ndarray | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return `Scene.water` and `Scene.mirror`."""
    if shore is None:
        return np.zeros_like(_X), (_Y.astype(int), _X.astype(int))
    ripple = 0.9 * np.sin(1.9 * _Y[:, :1] + rng.uniform(0, 6))
    rows = np.clip(shore - 1.6 * (_Y - shore), 0, HEIGHT - 1)  # squeezed, to reach the sky
    columns = np.clip(_X + ripple, 0, WIDTH - 1)
    mirror = rows.round().astype(int), columns.round().astype(int)
    return np.clip(_Y - shore + 0.5, 0, 1), mirror
