"""Batches of images by Pillow, in threads: the images of `dali_reader`, up to one gray level.

Pillow's resize differs from DALI's in the outermost rows and columns, where it leaves out the
filter's weights beyond the image: here it sees an image whose edge is repeated, as DALI does.

Of three channels the resize is that of bytes, which Pillow rounds to bytes between its two passes.
Where decoders differ by a level already (luminance of colours, 16-bit colours), it is that of
floating numbers, three times slower, as the two differences might add up to two levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastunit.common import waiting
from fastunit.common.errors import DataError
from fastunit.data.exact import floats
from fastunit.data.image_io import decode
from fastunit.data.image_kinds import kind_of
from fastunit.data.read_ahead import ReadAhead, Sample, checked_content, named
from fastunit.data.validation import SizeRule


class PillowReader:
    """Reads batches of samples; ``threads`` decode, resize, crop and mirror.

    ``arrays``: the files are decoded by `exact`, to floating numbers.
    """

    def __init__(
        self,
        samples: Iterator[list[Sample]],
        rule: SizeRule,
        device: torch.device,
        threads: int,
        *,
        arrays: bool = False,
    ) -> None:
        # Only Pillow and NumPy in the threads: PyTorch would start OpenMP threads in each.
        self._batches = ReadAhead(
            samples, lambda sample: _prepare(sample, rule, arrays), threads=threads
        )
        self._device, self._failed = torch.device(device), False

    def read(self, suspects: Callable[[], Sequence[Path]]) -> torch.Tensor:
        """Return the next batch, NCHW in channels_last. ``suspects`` is not needed here.

        Raises:
            DataError: a file cannot be read, or has changed since it was checked.
        """
        if self._failed:
            raise DataError("the stream of images has ended with an earlier error")
        self._failed = True
        images = torch.from_numpy(np.stack(next(self._batches)))
        self._failed = False
        waiting.progress()
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        nhwc = (images.float() - 127.5) / 127.5 if images.dtype == torch.uint8 else images
        return nhwc.permute(0, 3, 1, 2)


def _prepare(sample: Sample, rule: SizeRule, arrays: bool) -> np.ndarray:
    """Return a sample's pixels [H, W, channels]: uint8, or of arrays float32 in [-1, 1]."""
    with named(sample.file):
        data = checked_content(sample.file, rule.reading.limits)
        pixels = floats(data, rule.reading) if arrays else decode(data, rule.reading)
        height, width = pixels.shape[:2]
        if reason := rule.problem(height, width):
            raise DataError(reason)
        full = rule.resized(height, width)
        size = rule.crop or full
        top, left = (
            _place(u, a - b) for u, a, b in zip((sample.y, sample.x), full, size, strict=True)
        )
        exact = arrays or rule.reading.channels == 1 or kind_of(data).deep
        pixels = _window(pixels, full, (top, left), size, exact)
        return pixels[:, ::-1] if sample.flip else pixels


def _place(u: float, spare: int) -> int:
    """Return one of 0..spare, all equally likely for u uniform in [0, 1), as DALI in float32."""
    return int(np.float32(u) * np.float32(spare + 1))


def _window(
    pixels: np.ndarray,
    full: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    exact: bool,
) -> np.ndarray:
    """Return the part at `corner` of the given size of an image that is resized to `full`."""
    (height, width), (top, left) = size, corner
    if pixels.shape[:2] == full:
        return pixels[top : top + height, left : left + width]
    scales = [before / after for before, after in zip(pixels.shape[:2], full, strict=True)]
    # The filter reaches as far as a pixel of the result, and at least as one of the image.
    edges = [math.ceil(max(1.0, scale)) + 1 for scale in scales]
    padded = np.pad(pixels, [(edge, edge) for edge in edges] + [(0, 0)], mode="edge")
    y, x = (edge + at * scale for edge, at, scale in zip(edges, corner, scales, strict=True))
    box = (x, y, x + width * scales[1], y + height * scales[0])

    def resized(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))

    if not exact:
        return resized(Image.fromarray(padded))
    planes = np.moveaxis(padded.astype(np.float32), 2, 0)
    values = np.stack([resized(Image.fromarray(plane)) for plane in planes], axis=-1)
    return (values + 0.5).astype(np.uint8) if pixels.dtype == np.uint8 else values
