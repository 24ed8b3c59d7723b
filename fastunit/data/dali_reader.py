"""Batches of images by an NVIDIA DALI pipeline.

decode -> resize of the shorter side -> crop -> flip -> [-1, 1], in DALI's own threads, on the CPU
or (``mixed`` decode) on the GPU.

The resize is antialiased bilinear: within 0.51 of 255 levels of torch's
``interpolate(antialias=True)`` (rounding to bytes) and 1 of Pillow's, except in the outermost rows
and columns when shrinking, where DALI repeats the edge and the others renormalize. Measured on 40
photographs shrunk 8 times: up to 16 levels there, 0.32 on average over the whole image
(tests/data/test_pixels.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastunit.common import text, waiting
from fastunit.common.errors import DataError
from fastunit.data import dali
from fastunit.data.image_io import for_loader
from fastunit.data.image_kinds import kind_of
from fastunit.data.read_ahead import CHANGED, PREFETCH, ReadAhead, Sample, checked_content, named
from fastunit.data.validation import SizeRule, problem

_Batch = tuple[list[np.ndarray], list[np.int32], list[np.float32], list[np.float32]]  # contents


def _load(sample: Sample, rule: SizeRule) -> tuple[Sample, np.ndarray]:
    with named(sample.file):
        data = checked_content(sample.file, rule.reading.limits)
        return sample, np.frombuffer(for_loader(data, kind_of(data)), np.uint8)


def _inputs(samples: Iterator[list[Sample]], rule: SizeRule, threads: int) -> Iterator[_Batch]:
    """Yield samples as inputs of the DALI graph: contents, flips and, for crops, x and y."""
    for batch in ReadAhead(samples, lambda sample: _load(sample, rule), threads=threads):
        yield (
            [data for _, data in batch],
            [np.int32(sample.flip) for sample, _ in batch],
            [np.float32(sample.x) for sample, _ in batch],
            [np.float32(sample.y) for sample, _ in batch],
        )


class DaliReader:
    """The DALI pipeline, for training and test images alike; they differ only in ``samples``.

    ``mixed`` decodes on the GPU. ``threads`` are DALI's, and those that read files.
    """

    def __init__(
        self,
        samples: Iterator[list[Sample]],
        batch_size: int,
        rule: SizeRule,
        device: torch.device,
        threads: int,
        mixed: bool,
    ) -> None:
        from nvidia.dali.pipeline import pipeline_def

        self._rule, self._device, self._failed = rule, torch.device(device), False
        self._pipeline = pipeline_def(_graph)(
            _inputs(samples, rule, threads),
            rule,
            "mixed" if mixed else "cpu",
            self._cuda,
            batch_size=batch_size,
            num_threads=max(1, threads),
            device_id=self._device_id(),
            prefetch_queue_depth=PREFETCH,
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
        return f"cannot read {bad}. {CHANGED}. {said}"

    @property
    def _cuda(self) -> bool:
        return self._device.type == "cuda"

    def _device_id(self) -> int | None:
        if not self._cuda:
            return None
        index = self._device.index
        return torch.cuda.current_device() if index is None else index


def _graph(batches: Iterator[_Batch], rule: SizeRule, decoder: str, cuda: bool) -> Any:
    """Define the DALI graph: [N] files' contents and random numbers -> float32 NHWC in [-1, 1]."""
    fn, types = _dali()
    inputs = 4 if rule.crop else 2  # uncropped images need no crop position
    source = (batch[:inputs] for batch in batches)
    images, flip, *where = fn.external_source(source, num_outputs=inputs, batch=True)
    channels = rule.reading.channels
    images = fn.decoders.image(images, device=decoder, **dali.options(channels, False, types))
    if cuda and decoder == "cpu":
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
        mean=[127.5] * channels,
        std=[127.5] * channels,
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
