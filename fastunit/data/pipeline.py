"""Image files to training batches, and to test images.

decode -> resize of the shorter side -> crop -> flip -> [-1, 1], by NVIDIA DALI (`dali_reader`) or
by Pillow (`pillow_reader`), the same up to one gray level; values beyond 8 bits, which `exact`
decodes, by Pillow alone. Files are read ahead, in threads, and
compared with what passed the check. The random numbers are computed here, each a pure function of
(seed, stream, sample index), so a stream can start at any sample and is the same for both readers.
`image_io` defines how files are decoded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fastunit.common.choices import ImageLoader
from fastunit.common.errors import ConfigError, DataError
from fastunit.data import dali, exact
from fastunit.data.file_list import Files
from fastunit.data.image_io import Limits, Reading
from fastunit.data.read_ahead import PREFETCH, Sample
from fastunit.data.validation import SizeRule

_DEFAULTS = Limits()
_ORDER, _DRAW = 0, 1  # what a random number is for: part of its Philox key


class Reader(Protocol):
    """Reads batches of samples one after the other."""

    def read(self, suspects: Callable[[], Sequence[Path]]) -> torch.Tensor:
        """Return the next batch, NCHW in channels_last.

        ``suspects`` returns the files of this batch and of the prefetched ones, for error messages.
        """
        ...


class DomainLoader:
    """Infinite training stream of one domain: every file once per epoch, without pauses between.

    Each sample is resized (``new_size``, shorter side), cropped at a uniform position and, with
    ``flip``, mirrored left to right with probability 1/2. Bitwise reproducible on one device for
    given (files, seed, stream, position).
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        channels: int,
        batch_size: int,
        crop: tuple[int, int],
        new_size: int | None,
        seed: int,
        stream: int,
        device: torch.device,
        threads: int = 2,
        position: int = 0,
        flip: bool = True,
        value_range: tuple[float, float] | None = None,
        limits: Limits = _DEFAULTS,
        loader: ImageLoader = "auto",
    ) -> None:
        """Open the stream of ``files`` at sample ``position``.

        ``crop`` is (height, width). ``stream`` is 0 for domain a and 1 for b, so that one seed
        gives each domain its own order, crops and flips. ``value_range`` is that of
        `image_io.Reading`. ``threads`` decode; 0 means 1. ``loader`` is ``data.loader``. None of
        ``flip``, ``threads`` and ``loader`` changes order or crops.

        Raises:
            ConfigError: ``seed`` is negative.
            DataError: there are no files, or ``loader`` is "dali" and DALI is not installed.
        """
        if seed < 0:
            raise ConfigError(f"seed is {seed}; choose 0 or more")
        _check(files, loader)
        self._files = Files(files)
        self._batch_size = batch_size
        self._position = position
        self._flip = flip
        self._random = _Random(seed, stream, len(files))
        reading = Reading(channels, value_range, limits=limits, loader=loader)
        rule = SizeRule(new_size, crop, reading)
        self._reader = _reader(self._batches(position), batch_size, rule, device, threads, files)

    @property
    def position(self) -> int:
        """Samples delivered so far, without those that are prefetched."""
        return self._position

    def __iter__(self) -> DomainLoader:
        return self

    def __next__(self) -> torch.Tensor:
        """Return the next batch: float32 [N, C, H, W], channels_last, in [-1, 1], on the device.

        The caller owns the tensor. On CUDA it is ready on the current stream.

        Raises:
            DataError: a file was removed or changed since it was validated; the message names it,
                or the files of the batch.
        """
        ahead = range(self._position, self._position + self._batch_size * (1 + PREFETCH))
        images = self._reader.read(lambda: [self._sample(i).file for i in ahead])
        self._position += self._batch_size
        return images

    def _batches(self, first: int) -> Iterator[list[Sample]]:
        while True:
            yield [self._sample(i) for i in range(first, first + self._batch_size)]
            first += self._batch_size

    def _sample(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self._files))
        x, y, flip = self._random.draw(index)
        return Sample(self._files[self._random.order(epoch)[place]], x, y, flip and self._flip)


def iter_images(
    files: Sequence[Path],
    *,
    channels: int,
    batch_size: int,
    crop: tuple[int, int] | None,
    new_size: int | None,
    device: torch.device,
    threads: int = 2,
    value_range: tuple[float, float] | None = None,
    limits: Limits = _DEFAULTS,
    loader: ImageLoader = "auto",
) -> Iterator[torch.Tensor]:
    """Yield every file once, in the order given, unflipped: float32 [N, C, H, W] as DomainLoader.

    With ``crop`` (height, width), images are cropped at the centre (with an odd remainder, one
    pixel more is cut at the top or left) and the last batch may be smaller. With None, each image
    is yielded alone, uncropped.

    Raises:
        DataError: as DomainLoader, at the call, not at the first image.
    """
    _check(files, loader)
    size = batch_size if crop else 1
    groups = [files[i : i + size] for i in range(0, len(files), size)]
    batches = ([Sample(file, 0.5, 0.5, False) for file in group] for group in groups)
    rule = SizeRule(new_size, crop, Reading(channels, value_range, limits=limits, loader=loader))
    reader = _reader(batches, size, rule, device, threads, files)

    def images() -> Iterator[torch.Tensor]:
        for i in range(len(groups)):
            ahead = files[i * size : (i + 1 + PREFETCH) * size]
            yield reader.read(lambda ahead=ahead: ahead)

    return images()


class _Random:
    """The random numbers of one stream: raw Philox words, stateless.

    They do not depend on NumPy's version: it guarantees the bits of bit generators, but not those
    of ``Generator`` methods.
    """

    def __init__(self, seed: int, stream: int, files: int) -> None:
        self._seed, self._stream, self._files = seed, stream, files
        self.order = lru_cache(maxsize=4)(self._order)

    def draw(self, index: int) -> tuple[float, float, bool]:
        """Return crop x and y in [0, 1) and the flip of sample ``index``.

        20 bits each: exact in float32, and u * (range + 1) never rounds up to range + 1.
        """
        x, y, flip = self._words(3, _DRAW, index)
        return float(x >> 44) / 2**20, float(y >> 44) / 2**20, bool(flip >> 63)

    def _order(self, epoch: int) -> np.ndarray:
        return np.argsort(self._words(self._files, _ORDER, epoch), kind="stable")

    def _words(self, count: int, purpose: int, index: int) -> np.ndarray:
        key = np.random.SeedSequence(self._seed, spawn_key=(self._stream, purpose, index))
        return np.random.Philox(key).random_raw(count)


def _check(files: Sequence[Path], loader: ImageLoader) -> None:
    if not files:
        raise DataError("no image files to read")
    dali.require(loader)


def _reader(
    samples: Iterator[list[Sample]],
    batch_size: int,
    rule: SizeRule,
    device: torch.device,
    threads: int,
    files: Sequence[Path],
) -> Reader:
    arrays = exact.of_domain(files, rule.reading).exact
    if dali.used(rule.reading.loader) and not arrays:
        from fastunit.data.dali_reader import DaliReader

        return DaliReader(samples, batch_size, rule, device, threads, _mixed(files, device))
    from fastunit.data.pillow_reader import PillowReader

    return PillowReader(samples, rule, device, threads, arrays=arrays)


def _mixed(files: Sequence[Path], device: torch.device) -> bool:
    """Return whether DALI decodes on the GPU: JPEGs only.

    For other formats the GPU's decoders may give other pixels than those checked on the CPU.
    """
    cuda = torch.device(device).type == "cuda"
    return cuda and all(n.lower().endswith((".jpg", ".jpeg")) for n in Files(files).names)
