"""Image files to training batches: one NVIDIA DALI pipeline per domain.

decode -> resize of the shorter side -> crop -> flip -> [-1, 1], in DALI's own threads, on the CPU
or (``mixed`` decode) on the GPU. Python reads the files ahead, in threads, compares them with what
passed the check, and computes random numbers, each a pure function of (seed, stream, sample index),
so a stream can start at any sample.

The resize is antialiased bilinear: within 0.51 of 255 levels of torch's
``interpolate(antialias=True)`` (rounding to bytes) and 1 of Pillow's, except in the outermost rows
and columns when shrinking, where DALI repeats the edge and the others renormalize. Measured on 40
photographs shrunk 8 times: up to 16 levels there, 0.32 on average over the whole image
(tests/data/test_pixels.py). `image_io` defines how files are decoded to 8 bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastunit.common import text, waiting
from fastunit.common.errors import ConfigError, DataError
from fastunit.data import exact, passed
from fastunit.data.image_io import Limits, Reading, content, dali_options, for_loader
from fastunit.data.image_kinds import kind_of
from fastunit.data.read_ahead import ReadAhead
from fastunit.data.validation import SizeRule, problem, require_dali

_PREFETCH = 2  # batches DALI prepares ahead of the one asked for
_DEFAULTS = Limits()
_CHANGED = (
    "If it passed the check before the run, it has changed since: restore it, or start again, "
    "which checks all files anew"
)
_ORDER, _DRAW = 0, 1  # what a random number is for: part of its Philox key


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
    ) -> None:
        """Open the stream of ``files`` at sample ``position``.

        ``crop`` is (height, width). ``stream`` is 0 for domain a and 1 for b, so that one seed
        gives each domain its own order, crops and flips. ``threads`` are DALI's CPU threads; 0
        means 1. ``value_range`` is that of `image_io.Reading`. Neither ``flip``
        nor ``threads`` changes the order or the crops.

        Raises:
            ConfigError: ``seed`` is negative.
            DataError: there are no files, or DALI is not installed.
        """
        if seed < 0:
            raise ConfigError(f"seed is {seed}; choose 0 or more")
        _check(files)
        self._files = tuple(files)
        self._batch_size = batch_size
        self._position = position
        self._flip = flip
        self._random = _Random(seed, stream, len(files))
        rule = SizeRule(new_size, crop, Reading(channels, value_range, limits=limits))
        decoder = _decoder(files, rule, device)
        self._reader = _Reader(self._batches(position), batch_size, rule, device, threads, decoder)

    @property
    def position(self) -> int:
        """Samples delivered so far, without those that DALI has prefetched."""
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
        ahead = range(self._position, self._position + self._batch_size * (1 + _PREFETCH))
        images = self._reader.read(lambda: [self._sample(i)[0] for i in ahead])
        self._position += self._batch_size
        return images

    def _batches(self, first: int) -> Iterator[list[_Sample]]:
        while True:
            yield [self._sample(i) for i in range(first, first + self._batch_size)]
            first += self._batch_size

    def _sample(self, index: int) -> _Sample:
        epoch, place = divmod(index, len(self._files))
        x, y, flip = self._random.draw(index)
        return self._files[self._random.order(epoch)[place]], x, y, flip and self._flip


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
) -> Iterator[torch.Tensor]:
    """Yield every file once, in the order given, unflipped: float32 [N, C, H, W] as DomainLoader.

    With ``crop`` (height, width), images are cropped at the centre (with an odd remainder, one
    pixel more is cut at the top or left) and the last batch may be smaller. With None, each image
    is yielded alone, uncropped.

    Raises:
        DataError: as DomainLoader, at the call, not at the first image.
    """
    _check(files)
    size = batch_size if crop else 1
    groups = [files[i : i + size] for i in range(0, len(files), size)]
    batches = ([(file, 0.5, 0.5, False) for file in group] for group in groups)
    rule = SizeRule(new_size, crop, Reading(channels, value_range, limits=limits))
    reader = _Reader(batches, size, rule, device, threads, _decoder(files, rule, device))

    def images() -> Iterator[torch.Tensor]:
        for i in range(len(groups)):
            ahead = files[i * size : (i + 1 + _PREFETCH) * size]
            yield reader.read(lambda ahead=ahead: ahead)

    return images()


_Sample = tuple[Path, float, float, bool]  # file, crop x and y in [0, 1), flip
_Batch = tuple[list[np.ndarray], list[np.int32], list[np.float32], list[np.float32]]  # contents


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


def _check(files: Sequence[Path]) -> None:
    if not files:
        raise DataError("no image files to read")
    require_dali()


def _load(file: Path, reading: Reading, decoded: bool) -> np.ndarray:
    """Return what DALI decodes of a file, or its pixels; raises DataError that names it."""
    try:
        data = content(file, reading.limits)
        passed.verify(file, data)
        if decoded:
            return exact.floats(data, reading)
        return np.frombuffer(for_loader(data, kind_of(data)), np.uint8)
    except DataError as error:
        raise DataError(f"cannot read {text.name(file)} ({error}). {_CHANGED}") from error


def _inputs(
    samples: Iterator[list[_Sample]], reading: Reading, decoded: bool, threads: int
) -> Iterator[_Batch]:
    """Yield samples as inputs of the DALI graph: contents, flips and, for crops, x and y.

    Contents are files, or float32 [H, W, C] in [-1, 1] if `decoded`.
    """
    kept: deque[list[_Sample]] = deque()

    def files() -> Iterator[list[Path]]:
        for batch in samples:
            kept.append(batch)
            yield [file for file, *_ in batch]

    contents = ReadAhead(
        files(), lambda file: _load(file, reading, decoded), threads=threads, ahead=_PREFETCH
    )
    for data in contents:
        _, xs, ys, flips = zip(*kept.popleft(), strict=True)
        yield (
            data,
            [np.int32(flip) for flip in flips],
            [np.float32(x) for x in xs],
            [np.float32(y) for y in ys],
        )


class _Reader:
    """The DALI pipeline, for training and test images alike; they differ only in ``batches``."""

    def __init__(
        self,
        samples: Iterator[list[_Sample]],
        batch_size: int,
        rule: SizeRule,
        device: torch.device,
        threads: int,
        decoder: str,
    ) -> None:
        from nvidia.dali.pipeline import pipeline_def

        self._rule, self._device, self._failed = rule, torch.device(device), False
        self._pipeline = pipeline_def(_graph)(
            _inputs(samples, rule.reading, decoder == "none", threads),
            rule,
            decoder,
            self._cuda,
            batch_size=batch_size,
            num_threads=max(1, threads),
            device_id=self._device_id(),
            prefetch_queue_depth=_PREFETCH,
            exec_dynamic=True,  # outputs own their memory, ordered by the stream passed to run()
        )
        self._pipeline.build()

    def read(self, suspects: Callable[[], Sequence[Path]]) -> torch.Tensor:
        """Return the next batch, NCHW in channels_last.

        ``suspects`` returns the files of this batch and of the prefetched ones, for error messages.

        Raises:
            DataError: a file cannot be read, has changed since it was checked, or DALI fails.
        """
        if self._failed:
            raise DataError("the stream of images has ended with an earlier error")
        stream = torch.cuda.current_stream(self._device) if self._cuda else None
        self._failed = True
        try:
            (images,) = self._pipeline.run(stream)
            self._failed = False
            waiting.progress()
        except RuntimeError as error:
            raise DataError(self._explain(error, suspects())) from error
        nhwc = torch.from_dlpack(images.as_tensor())
        # A copy: DALI reuses its buffer, in that stream's order, once nhwc is freed.
        return nhwc.permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)

    def _explain(self, error: RuntimeError, files: Sequence[Path]) -> str:
        """Return a message that names the files that caused DALI's error, if any did."""
        reasons = {file: problem(file, self._rule) for file in files}
        bad = ", ".join(
            f"{text.name(file)} ({reason})" for file, reason in reasons.items() if reason
        )
        said = str(error).partition("encountered:")[2].strip() or str(error)
        said = f"DALI says: {said.splitlines()[0]}"
        if not bad:
            return f"DALI failed, on one of {', '.join(map(str, reasons))} if on a file. {said}"
        return f"cannot read {bad}. {_CHANGED}. {said}"

    @property
    def _cuda(self) -> bool:
        return self._device.type == "cuda"

    def _device_id(self) -> int | None:
        if not self._cuda:
            return None
        index = self._device.index
        return torch.cuda.current_device() if index is None else index


def _decoder(files: Sequence[Path], rule: SizeRule, device: torch.device) -> str:
    """Return DALI's decoder device: "mixed" (GPU) for JPEGs only, else "cpu"; "none": `exact`.

    For other formats the GPU's decoders may give other pixels than those checked on the CPU.
    """
    suffixes = {file.suffix.lower() for file in files}
    if rule.reading.exact or exact.ARRAY in suffixes:
        return "none"
    cuda = torch.device(device).type == "cuda"
    return "mixed" if cuda and suffixes <= {".jpg", ".jpeg"} else "cpu"


def _graph(batches: Iterator[_Batch], rule: SizeRule, decoder: str, cuda: bool) -> Any:
    """Define the DALI graph: [N] files' contents and random numbers -> float32 NHWC in [-1, 1]."""
    fn, types = _dali()
    inputs = 4 if rule.crop else 2  # uncropped images need no crop position
    source = (batch[:inputs] for batch in batches)
    layouts = ["HWC" if decoder == "none" else "", *[""] * (inputs - 1)]
    images, flip, *where = fn.external_source(
        source, num_outputs=inputs, batch=True, layout=layouts
    )
    channels, middle = rule.reading.channels, 0.0 if decoder == "none" else 127.5
    if decoder != "none":
        images = fn.decoders.image(images, device=decoder, **dali_options(channels, False, types))
    if cuda and decoder != "mixed":
        images = images.gpu()
    if rule.new_size:
        images = fn.resize(
            images,
            resize_shorter=rule.new_size,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
            # otherwise the image shifts by the longer side's rounding (5 of 255 levels on noise)
            subpixel_scale=False,
        )
    return fn.crop_mirror_normalize(
        images,
        mirror=flip,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[middle] * channels,
        std=[middle or 1.0] * channels,
        **(_crop_arguments(images, rule.crop, *where) if rule.crop else {}),
    )


def _dali() -> tuple[Any, Any]:
    """Return DALI's `fn` and `types` as Any: their type stubs are incomplete."""
    from nvidia.dali import fn, types

    return fn, types


def _crop_arguments(images: Any, crop: tuple[int, int], x: Any, y: Any) -> dict[str, Any]:
    """Make every offset in 0..spare equally likely; DALI's rounding would halve the two ends."""
    from nvidia.dali import math

    shape = images.shape(dtype=_dali()[1].FLOAT)

    def place(u: Any, spare: Any) -> Any:
        return math.floor(u * (spare + 1.0)) / math.max(spare, 1.0)

    return {
        "crop": crop,
        "crop_pos_y": place(y, shape[0] - float(crop[0])),
        "crop_pos_x": place(x, shape[1] - float(crop[1])),
    }
