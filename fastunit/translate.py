"""Translate image files with trained networks: ``python -m fastunit.translate``.

Files are read ahead and written behind the network in threads. No input is ever overwritten: every
output is compared with every input, through links too, before the first is written. Any other file
in an output's place is replaced.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastunit import checkpoint, cli, config
from fastunit import precision as precisions
from fastunit.coupled import DIRECTIONS, Translator
from fastunit.errors import CheckpointError, ConfigError, DataError, UserError
from fastunit.sources import EXTENSIONS, image_files

with cli.needs("train"):
    from tqdm import tqdm

    from fastunit import pictures

THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Job:
    """One image to translate: where it is read, and where the translation goes."""

    source: Path
    target: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0: all done, 1: some images could not be, 2: a UserError."""
    args = _parser().parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _translate(args))


def plan(source: Path, output: Path) -> list[Job]:
    """Return what to translate and where to, having made sure that no input is overwritten.

    A folder's tree and names are kept under `output`. A file goes into `output` where that is a
    folder, under its own name, else to `output` itself, in the format of its extension.

    Raises DataError: there is no input, the output has no image's extension, or the output would
    replace an input or land in the input folder.
    """
    if os.path.isdir(source):
        jobs = _folder_jobs(source, output)
    elif os.path.isfile(source):
        jobs = [_file_job(source, output)]
    else:
        raise DataError(f"INPUT {source} is neither a file nor a folder")
    _protect_inputs(jobs)
    return jobs


class FileTranslator:
    """Translates image files one way, in batches of consecutive images of equal size.

    Attributes:
        failed: the sources that could not be read or written, with the reasons.
    """

    def __init__(
        self,
        pair: Translator,
        direction: str,
        *,
        device: torch.device,
        batch_size: int,
        precision: str = "auto",
    ) -> None:
        """Move `pair` to `device`, to multiply there in a precision of `config.PRECISIONS`.

        Raises CheckpointError when it cannot serve image files, ConfigError for a precision that
        the device has not.
        """
        source, target = pair.along(direction)
        for generator in (source, target):
            if generator.input_dim not in (1, 3):
                raise CheckpointError(
                    f"the networks take images of {generator.input_dim} channels; image files are "
                    "translated with 1 (grayscale) or 3 (RGB)"
                )
        if not all(parameter.isfinite().all() for parameter in pair.parameters()):
            raise CheckpointError("the checkpoint holds weights that are NaN or infinite")
        self._pair = pair.to(device, memory_format=torch.channels_last)
        self._direction, self._device, self._batch_size = direction, device, batch_size
        self._precision = precisions.resolve(precision, device)
        self._channels = source.input_dim
        self._writes: deque[tuple[Job, Future[None]]] = deque()
        self.failed: dict[Path, str] = {}

    def run(self, jobs: Sequence[Job]) -> None:
        """Translate all `jobs` that can be; `failed` tells of the others.

        Raises UserError when an output cannot be written to disk or the GPU's memory is too small.
        """
        pool = ThreadPoolExecutor(THREADS)
        try:
            with tqdm(total=len(jobs), desc="translating", unit="image") as bar:
                for batch, images in self._batches(self._read_ahead(jobs, pool, bar)):
                    for job, picture in zip(batch, self._outputs(batch, images), strict=True):
                        self._writes.append((job, pool.submit(pictures.write, picture, job.target)))
                    self._finish_writes(bar, leave=2 * self._batch_size)
                self._finish_writes(bar, leave=0)
        finally:
            pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def translate(self, images: np.ndarray) -> np.ndarray:
        """Translate uint8 [N, H, W, C] to uint8 [N, H, W, K] through the network's [-1, 1]."""
        # Channels stay last in memory: NHWC seen as NCHW is channels_last.
        x = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with precisions.products(self._precision, self._device):
            y = self._pair.translate(x, self._direction).float()
        values = ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return values.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _outputs(self, batch: list[Job], images: list[np.ndarray]) -> np.ndarray:
        try:
            return self.translate(np.stack(images))
        except torch.OutOfMemoryError as error:
            height, width = images[0].shape[:2]
            raise UserError(
                f"{self._device} has too little memory for {len(batch)} images of {width}x{height} "
                f"pixels, from {batch[0].source} on; lower --batch-size {self._batch_size}, or "
                "use --device cpu"
            ) from error

    def _read_ahead(
        self, jobs: Sequence[Job], pool: ThreadPoolExecutor, bar: tqdm
    ) -> Iterator[tuple[Job, np.ndarray]]:
        """Yield the readable pictures in order, keeping two batches of them under way."""
        reads: deque[tuple[Job, Future[np.ndarray]]] = deque()
        todo = iter(jobs)
        while True:
            while len(reads) < 2 * self._batch_size and (job := next(todo, None)):
                reads.append((job, pool.submit(pictures.read, job.source, self._channels)))
            if not reads:
                return
            job, read = reads.popleft()
            try:
                yield job, read.result()
            except DataError as error:
                self._fail(job, error, bar)

    def _batches(
        self, images: Iterator[tuple[Job, np.ndarray]]
    ) -> Iterator[tuple[list[Job], list[np.ndarray]]]:
        """Group consecutive pictures of one size, at most the batch size of them."""
        batch: list[tuple[Job, np.ndarray]] = []
        for job, image in images:
            if batch and (len(batch) == self._batch_size or batch[0][1].shape != image.shape):
                yield [job for job, _ in batch], [image for _, image in batch]
                batch = []
            batch.append((job, image))
        if batch:
            yield [job for job, _ in batch], [image for _, image in batch]

    def _finish_writes(self, bar: tqdm, *, leave: int) -> None:
        """Wait until at most `leave` writes are under way."""
        while len(self._writes) > leave:
            job, write = self._writes.popleft()
            try:
                write.result()
            except DataError as error:
                self._fail(job, error, bar)
            except OSError as error:  # a full disk, a forbidden folder: the next would fail too
                raise UserError(f"cannot write {job.target}: {error.strerror}") from error
            else:
                bar.update()

    def _fail(self, job: Job, error: DataError, bar: tqdm) -> None:
        self.failed[job.source] = str(error)
        bar.update()


def _folder_jobs(folder: Path, output: Path) -> list[Job]:
    if os.path.lexists(output) and not os.path.isdir(output):
        raise DataError(f"OUTPUT {output} is a file, but INPUT {folder} is a folder")
    jobs = [Job(file, output / file.relative_to(folder)) for file in image_files(folder)]
    root = os.path.realpath(folder)
    for target in {job.target.parent for job in jobs}:
        if Path(os.path.realpath(target)).is_relative_to(root):
            raise DataError(
                f"the translations in {target} would stand among the inputs in {folder}; "
                "choose an OUTPUT outside of it"
            )
    return jobs


def _file_job(file: Path, output: Path) -> Job:
    target = output / file.name if os.path.isdir(output) else output
    if target.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"cannot tell an image format from the name of {target}: it must be an existing "
            f"folder or end in one of {' '.join(EXTENSIONS)}"
        )
    return Job(file, target)


def _protect_inputs(jobs: Sequence[Job]) -> None:
    """Raise DataError when an output is, by any name or link, one of the inputs."""
    inputs = {identity: job.source for job in jobs for identity in _identities(job.source)}
    for job in jobs:
        for identity in _identities(job.target):
            if identity in inputs:
                raise DataError(
                    f"the output {job.target} is the input {inputs[identity]}, and inputs are "
                    "never overwritten; choose another OUTPUT"
                )


def _identities(path: Path) -> set[tuple[int, int]]:
    """Return device and inode of an entry and of what it links to; none where there is none."""
    found = set()
    for look in (os.stat, os.lstat):
        with suppress(OSError):
            status = look(path)
            found.add((status.st_dev, status.st_ino))
    return found


def _translate(args: argparse.Namespace) -> int:
    device = cli.pick_device(args.device)
    jobs = plan(args.input, args.output)
    given = config.load(args.config) if args.config else None
    pair, used = checkpoint.load_generators(args.checkpoint, given)
    if given is not None and used is not given:
        raise ConfigError(f"{args.checkpoint} has its own configuration; leave out --config")
    translator = FileTranslator(
        pair,
        args.direction,
        device=device,
        batch_size=args.batch_size,
        precision=args.precision,
    )
    start = time.perf_counter()
    try:
        translator.run(jobs)
    finally:  # what stops the run does not hide these
        _report(translator.failed)
    seconds, done = time.perf_counter() - start, len(jobs) - len(translator.failed)
    print(
        f"translated {done} of {len(jobs)} images {args.direction} in {seconds:.1f} s "
        f"({done / seconds:.1f} images/s) to {jobs[0].target if len(jobs) == 1 else args.output}"
    )
    return 1 if translator.failed else 0


def _report(failed: dict[Path, str]) -> None:
    if failed:
        print(f"{len(failed)} images could not be translated:", file=sys.stderr)
    for file, reason in failed.items():
        print(f"  {file}: {reason}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastunit.translate",
        description="Translate an image, or all images in a folder, to the other domain.",
        epilog="JPEG is written with quality 95, PNG, BMP, TIFF and WebP without loss. Exit "
        "status: 0, all done; 1, some could not be translated and are listed; 2, another error.",
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint, a run's folder, or a release's gen_*.pt"
    )
    parser.add_argument("input", type=Path, help="an image, or a folder, searched recursively")
    parser.add_argument(
        "output", type=Path, help="a folder, in which tree and names are kept, or an image"
    )
    parser.add_argument(
        "--direction", choices=DIRECTIONS, required=True, help="from which domain to which"
    )
    parser.add_argument(
        "--batch-size", type=_count, default=8, help="most images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision",
        choices=[name for name in config.PRECISIONS if name != "inherit"],
        default="auto",
        help="of products; auto (the default): bf16 on GPUs that have it, else fp32",
    )
    parser.add_argument(
        "--config", type=Path, help="the YAML of a release's gen_*.pt, which does not hold it"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
