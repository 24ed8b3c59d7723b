"""Translation of image files; reading ahead and writing happen in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastunit.common.choices import Direction
from fastunit.common.errors import CheckpointError, DataError, StorageError
from fastunit.data import decoding, image_io
from fastunit.inference.plan import Job
from fastunit.inference.translator import Translator, of_memory

THREADS = min(4, os.cpu_count() or 1)


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
        styles: Tensor | None = None,
    ) -> None:
        """Prepare to translate.

        Args:
            translator: the networks.
            direction: "a2b" or "b2a".
            batch_size: maximal number of images at a time.
            max_pixels: of the largest image that is read; None: the configuration's limit.
            size: pixels of the shorter side that images are resized to first; None: not resized.
            styles: style codes [K, style_dim] of the target domain, each for a translation of its
                own; None: one translation, of the mean style where there are styles.

        Raises:
            CheckpointError: the networks' channels are neither 1 nor 3.
        """
        source, target = translator.networks.along(direction)
        for generator in (source, target):
            if generator.input_dim not in (1, 3):
                raise CheckpointError(
                    f"the networks take images of {generator.input_dim} channels; image files are "
                    "translated with 1 (grayscale) or 3 (RGB)"
                )
        self._translator, self._batch_size, self._size = translator, batch_size, size
        self._direction: Direction = direction
        self._reading = _reading(translator, direction[0], max_pixels)
        self._styles = [None] if styles is None else list(styles)
        self._writes: deque[tuple[Job, Path, Future[None]]] = deque()
        self.failed: dict[Path, str] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Translate all `jobs`; those that fail are added to `failed`.

        Raises:
            StorageError: an output cannot be written to disk.
            CheckpointError: a translation is not finite.
        """
        pool = ThreadPoolExecutor(THREADS)
        try:
            with tqdm(total=len(jobs), desc="translating", unit="image") as bar:
                for batch, images in self._batches(self._read_ahead(jobs, pool, bar)):
                    for number, style in enumerate(self._styles):
                        for job, pixels in zip(batch, self._outputs(images, style), strict=True):
                            if isinstance(pixels, DataError):
                                self._fail(job, pixels)
                                continue
                            target = job.targets[number]
                            write = pool.submit(image_io.write, pixels, target)
                            self._writes.append((job, target, write))
                        self._finish_writes(leave=2 * self._batch_size)
                    bar.update(len(batch))
                self._finish_writes(leave=0)
        finally:
            pool.shutdown(cancel_futures=True)

    def _outputs(
        self, images: list[np.ndarray], style: Tensor | None
    ) -> list[np.ndarray | DataError]:
        """Return the translations; where memory is too small, in halves down to single images."""
        try:
            with torch.inference_mode():
                batch = np.stack(images)
                return list(self._translator.translate(batch, self._direction, style=style))
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

    def _read_ahead(
        self, jobs: Sequence[Job], pool: ThreadPoolExecutor, bar: tqdm
    ) -> Iterator[tuple[Job, np.ndarray]]:
        """Yield the readable images in order, reading two batches ahead."""
        reads: deque[tuple[Job, Future[np.ndarray]]] = deque()
        todo = iter(jobs)
        while True:
            while len(reads) < 2 * self._batch_size and (job := next(todo, None)):
                reads.append((job, pool.submit(self._read, job.source)))
            if not reads:
                return
            job, read = reads.popleft()
            try:
                yield job, read.result()
            except DataError as error:
                self._fail(job, error)
                bar.update()

    def _read(self, file: Path) -> np.ndarray:
        return _decoded(file, self._reading, self._size)

    def _batches(
        self, images: Iterator[tuple[Job, np.ndarray]]
    ) -> Iterator[tuple[list[Job], list[np.ndarray]]]:
        """Group consecutive images of equal size, at most the batch size."""
        batch: list[tuple[Job, np.ndarray]] = []
        for job, image in images:
            if batch and (len(batch) == self._batch_size or batch[0][1].shape != image.shape):
                yield [job for job, _ in batch], [image for _, image in batch]
                batch = []
            batch.append((job, image))
        if batch:
            yield [job for job, _ in batch], [image for _, image in batch]

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
        pixels = _decoded(file, _reading(translator, domain, max_pixels), size)
        return translator.style_of(pixels, domain)
    except DataError as error:
        raise DataError(f"--style {file}: {error}") from error


def _reading(translator: Translator, domain: str, max_pixels: int | None) -> image_io.Reading:
    reading = image_io.reading_of(translator.config, domain)
    if max_pixels is None:
        return reading
    limits = replace(reading.limits, pixels=max_pixels, key="--max-pixels")
    return replace(reading, limits=limits)


def _decoded(file: Path, reading: image_io.Reading, size: int | None) -> np.ndarray:
    pixels = decoding.decode(file, reading)
    return pixels if size is None else _resized(pixels, size, reading.limits)


def _resized(pixels: np.ndarray, size: int, limits: image_io.Limits) -> np.ndarray:
    """Return uint8 [H, W, C] with a shorter side of `size` pixels, antialiased bilinear.

    Raises:
        DataError: it would have more pixels than the limit.
    """
    height, width, channels = pixels.shape
    scale = size / min(height, width)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    limits.check_size(*shape)
    image = image_io.to_image(pixels).resize(shape, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape[1], shape[0], channels)
