"""Translation of image and video files; reading ahead and writing happen in threads."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastunit.common.choices import Direction
from fastunit.common.errors import DataError, StorageError
from fastunit.data import decoding, deep_files, exact, image_io
from fastunit.data.deep_files import Bits
from fastunit.data.picture import Picture, Wanted
from fastunit.inference import video
from fastunit.inference.plan import Job
from fastunit.inference.translator import Tile, Translator, eight_bits, finite, of_memory

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2**28  # bytes of images that are read ahead, or wait to be written


class FileTranslator:
    """Translates image files in one direction, in batches of consecutive images of equal size.

    With styles, each image is translated with each of them, into its job's files in turn.

    Attributes:
        failed: the sources that could not be read or written, with the reasons.
    """

    def __init__(
        self,
        translator: Translator,
        direction: Direction,
        *,
        batch_size: int,
        max_pixels: int | None = None,
        size: int | None = None,
        tile: Tile = "auto",
        wanted: Wanted | None = None,
        bits: Bits = 8,
        styles: Tensor | None = None,
    ) -> None:
        """Prepare to translate.

        Args:
            translator: the networks.
            direction: "a2b" or "b2a".
            batch_size: maximal number of images at a time; fewer where memory is short.
            max_pixels: of the largest image that is read; None: the configuration's limit.
            size: pixels of the shorter side that images are resized to first; None: not resized.
            tile: as in `Translator.translate`.
            wanted: what is kept of the files beside their pixels, and what becomes of colour
                profiles; None: only converted to sRGB.
            bits: of the results' values: 8; 16, or 32 for floating numbers, in the range of the
                target domain, or that of the type.
            styles: style codes [K, style_dim] of the target domain, each for a translation of its
                own; None: one translation, of the mean style where there are styles.

        Raises:
            DataError: 16 bits cannot hold the range of the target domain.
        """
        _, target = translator.networks.along(direction)
        self._channels = target.input_dim
        self._bits: Bits = bits
        self._range = translator.config.domain(direction[-1]).value_range
        deep_files.values_of(np.zeros((0, 0, 0), np.float32), bits, self._range)
        self._translator, self._batch_size, self._size = translator, batch_size, size
        self._direction: Direction = direction
        self._tile: Tile = tile
        self._wanted = wanted or Wanted()
        self._bytes = AHEAD  # of the image that was read last
        self._reading = _reading(translator, direction[0], max_pixels)
        self._styles = [None] if styles is None else list(styles)
        self._writes: deque[tuple[Job, Path, Future[None]]] = deque()
        self.failed: dict[Path, str] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Translate all `jobs`; those that fail are added to `failed`.

        Raises:
            DataError: an output's format cannot hold the results.
            StorageError: an output, or a temporary file of a large picture, cannot be written.
            CheckpointError: a translation is not finite.
        """
        videos = [job for job in jobs if job.is_video]
        jobs = [job for job in jobs if not job.is_video]
        for target in (target for job in jobs for target in job.targets):
            deep_files.check(target, self._bits, self._channels)
        videos = self._possible(videos, alone=not jobs)
        pool = ThreadPoolExecutor(THREADS)
        try:
            with tqdm(total=len(jobs) + len(videos), desc="translating", unit="image") as bar:
                for batch in self._batches(self._read_ahead(jobs, pool, bar)):
                    for number, style in enumerate(self._styles):
                        self._translate(batch, number, style, pool)
                    bar.update(len(batch))
                self._finish_writes(leave=0)
                for job in videos:
                    for target, style in zip(job.targets, self._styles, strict=True):
                        self._video(job, target, style)
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            decoding.stop()  # else its threads wait for files, for `data.max_seconds` at most
            raise
        finally:
            pool.shutdown()

    def _translate(
        self,
        batch: list[tuple[Job, Picture]],
        number: int,
        style: Tensor | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Translate a batch with a style, and write the results, of that number, in threads."""
        outputs = self._outputs([picture.pixels for _, picture in batch], style)
        for (job, picture), pixels in zip(batch, outputs, strict=True):
            if isinstance(pixels, DataError):
                self._fail(job, pixels)
                continue
            result, target = replace(picture, pixels=pixels), job.targets[number]
            self._writes.append((job, target, pool.submit(self._write, result, target)))
        self._finish_writes(leave=self._ahead())

    def _outputs(
        self, images: list[np.ndarray], style: Tensor | None
    ) -> list[np.ndarray | DataError]:
        """Return the translations; where memory is too small, in halves down to single images."""
        try:
            with torch.inference_mode():
                x = np.stack(images)
                if self._bits != 8 and x.dtype == np.uint8:
                    x = x.astype(np.float32) / 127.5 - 1
                y = self._translator.translate(x, self._direction, style=style, tile=self._tile)
                return list(eight_bits(y) if self._bits == 8 else finite(y))
        except OSError as error:
            raise StorageError(
                f"cannot keep the layers of a large picture in {tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a folder with more space"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not of_memory(error):
                raise
        if len(images) == 1:
            height, width = images[0].shape[:2]
            device = self._translator.device
            advice = "shrink it, or use --device cpu" if device.type == "cuda" else "shrink it"
            return [
                DataError(f"{device} has too little memory for {width}x{height} pixels; {advice}")
            ]
        middle = len(images) // 2
        return self._outputs(images[:middle], style) + self._outputs(images[middle:], style)

    def _possible(self, videos: list[Job], alone: bool) -> list[Job]:
        """Return the videos, or none if they cannot be translated; raises DataError if `alone`."""
        try:
            if videos:
                self._check_videos()
        except DataError as error:
            if alone:
                raise
            for job in videos:
                self._fail(job, error)
            return []
        return videos

    def _check_videos(self) -> None:
        video.require()
        if self._reading.exact or self._channels not in (1, 3) or self._bits != 8:
            raise DataError(
                "videos have 8 bits and three colours; these networks, or --bits, need more: take "
                "the frames as image files, as docs/translate.md shows"
            )

    def _video(self, job: Job, target: Path, style: Tensor | None) -> None:
        limits, batch = self._reading.limits, self._batch_size
        frames = partial(self._frames, style=style)
        try:
            video.translate(job.source, target, frames, batch=batch, limits=limits)
        except DataError as error:
            self._fail(job, error)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error.strerror}") from error

    def _frames(self, frames: list[np.ndarray], style: Tensor | None) -> list[np.ndarray]:
        """Translate frames, uint8 [H, W, 3], to the same kind."""
        pictures = [Picture(image_io.of_channels(x, self._reading.channels)) for x in frames]
        if self._size is not None:
            pictures = [_resized(each, self._size, self._reading.limits) for each in pictures]
        images = [picture.pixels for picture in pictures]
        most = min(self._batch_size, self._at_once(*images[0].shape[:2]))
        results: list[np.ndarray] = []
        for start in range(0, len(images), most):
            for y in self._outputs(images[start : start + most], style):
                if isinstance(y, DataError):
                    raise y
                results.append(image_io.of_channels(y, 3))
        return results

    def _read_ahead(
        self, jobs: Sequence[Job], pool: ThreadPoolExecutor, bar: tqdm
    ) -> Iterator[tuple[Job, Picture]]:
        """Yield the readable images in order, reading ahead."""
        reads: deque[tuple[Job, Future[Picture]]] = deque()
        todo = iter(jobs)
        while True:
            while len(reads) < self._ahead() and (job := next(todo, None)):
                reads.append((job, pool.submit(self._read, job.source)))
            if not reads:
                return
            job, read = reads.popleft()
            try:
                picture = read.result()
            except DataError as error:
                self._fail(job, error)
                bar.update()
                continue
            self._bytes = picture.pixels.nbytes
            yield job, picture

    def _ahead(self) -> int:
        """Return how many images are read ahead: two batches, of large ones fewer."""
        return max(1, min(2 * self._batch_size, AHEAD // self._bytes))

    def _read(self, file: Path) -> Picture:
        return _picture(file, self._reading, self._wanted, self._size)

    def _write(self, picture: Picture, file: Path) -> None:
        values, suffix = picture.pixels, file.suffix.lower()
        beside = {"alpha": picture.alpha, "profile": picture.profile, "exif": picture.exif}
        if self._bits != 8:
            values = deep_files.values_of(values, self._bits, self._range)
        if self._bits == 8 and self._channels in (1, 3) and suffix != exact.ARRAY:
            image_io.write(values, file, **beside)
        else:
            deep_files.write(values, file, **beside)

    def _batches(
        self, images: Iterator[tuple[Job, Picture]]
    ) -> Iterator[list[tuple[Job, Picture]]]:
        """Group consecutive images of equal size, at most the batch size, as memory allows."""
        batch: list[tuple[Job, Picture]] = []
        most, last = 1, None
        for job, picture in images:
            kind = picture.pixels.shape, picture.pixels.dtype
            if batch and (len(batch) == most or kind != last):
                yield batch
                batch = []
            if not batch:
                most = self._at_once(*picture.pixels.shape[:2])
            last = kind
            batch.append((job, picture))
        if batch:
            yield batch

    def _at_once(self, height: int, width: int) -> int:
        fitting = self._translator.memory.images(self._direction, height, width)
        return self._batch_size if fitting is None else max(1, min(self._batch_size, fitting))

    def _finish_writes(self, *, leave: int) -> None:
        """Wait until at most `leave` writes are pending."""
        while len(self._writes) > leave:
            job, target, write = self._writes.popleft()
            try:
                write.result()
            except DataError as error:
                self._fail(job, error)
            except OSError as error:  # disk full or no permission: the next would fail too
                raise StorageError(f"cannot write {target}: {error.strerror}") from error

    def _fail(self, job: Job, error: DataError) -> None:
        self.failed[job.source] = str(error)


def style_of(
    file: Path,
    translator: Translator,
    direction: Direction,
    *,
    max_pixels: int | None = None,
    size: int | None = None,
) -> Tensor:
    """Return the style code of an image of the target domain, [1, style_dim].

    Args:
        file: the image.
        translator: the networks.
        direction: "a2b" or "b2a".
        max_pixels: as `FileTranslator`'s.
        size: as `FileTranslator`'s.

    Raises:
        UserError: the networks have no styles.
        DataError: the file cannot be used, or is too small.
    """
    domain = direction[-1]
    try:
        found = _picture(file, _reading(translator, domain, max_pixels), Wanted(), size)
        return translator.style_of(found.pixels, domain)
    except DataError as error:
        raise DataError(f"--style {file}: {error}") from error


def _reading(translator: Translator, domain: str, max_pixels: int | None) -> image_io.Reading:
    reading = image_io.reading_of(translator.config, domain)
    if max_pixels is None:
        return reading
    limits = replace(reading.limits, pixels=max_pixels, key="--max-pixels")
    return replace(reading, limits=limits)


def _picture(file: Path, reading: image_io.Reading, wanted: Wanted, size: int | None) -> Picture:
    found = decoding.picture(file, reading, wanted)
    return found if size is None else _resized(found, size, reading.limits)


def _resized(picture: Picture, size: int, limits: image_io.Limits) -> Picture:
    """Return a picture with a shorter side of `size` pixels, antialiased bilinear.

    Raises:
        DataError: it would have more pixels than the limit.
    """
    height, width, channels = picture.pixels.shape
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    limits.check_size(*shape)

    def resized(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values).resize(shape, Image.Resampling.BILINEAR))

    if picture.pixels.dtype == np.uint8 and channels == 3:
        pixels = resized(picture.pixels)
    else:
        pixels = np.stack([resized(plane) for plane in np.moveaxis(picture.pixels, 2, 0)], 2)
    return replace(
        picture,
        pixels=pixels,
        alpha=None if picture.alpha is None else resized(picture.alpha),
    )
