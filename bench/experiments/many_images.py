"""A start with very many images: ``python -m bench.experiments.many_images [--count 1000000]``.

Makes hard links to a few images, fills the index with what it would hold after a complete check,
and measures how long the next start takes to find the files and to look them up, and the memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from fastunit.data import decoding, validation
from fastunit.data.discovery import image_files
from fastunit.data.image_io import Reading
from fastunit.data.index import Index, state_of
from fastunit.data.validation import SizeRule

FOLDER = 10_000  # links in a folder
LINKS = 30_000  # to one file; ext4 allows 65,000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.many_images")
    parser.add_argument("--count", type=int, default=1_000_000)
    args = parser.parse_args(argv)
    rule = SizeRule(None, (32, 32))
    with TemporaryDirectory() as name:
        root, index = Path(name, "images"), Path(name, "index")
        make(root, args.count)
        process = Process(target=fill, args=(root, index))  # whose memory does not count here
        process.start()
        process.join()
        assert process.exitcode == 0
        validation._index_version()  # imports DALI
        before, times = memory(), [clocks()]
        files = image_files(root)
        times.append(clocks())
        good = validation.validate(files, rule=rule, workers=1, skip_bad=False, index=index)
        times.append(clocks())
        assert len(good) == args.count
    (wall, cpu), (wall2, cpu2), (wall3, cpu3) = times
    print(
        f"{args.count:,} images: found in {wall2 - wall:.1f} s ({cpu2 - cpu:.1f} of CPU), looked "
        f"up in {wall3 - wall2:.1f} s ({cpu3 - cpu2:.1f}); {memory() - before:.0f} MB more at most"
    )
    return 0


def make(root: Path, count: int) -> None:
    """Link `count` images."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    root.mkdir()
    for index in range(count):
        folder, source = root / f"{index // FOLDER:05}", root.parent / f"{index // LINKS}.png"
        if index % LINKS == 0:
            Image.fromarray(pixels).save(source)
        if index % FOLDER == 0:
            folder.mkdir()
        os.link(source, f"{folder}/{index:09}.png")


def fill(root: Path, index: Path) -> None:
    """Write what a complete check would have recorded."""
    files, mode = image_files(root), validation._mode(Reading())
    known = decoding.measure(files[0], Reading())
    with Index(index, validation._index_version()) as entries:
        for file in files.names:
            entries.add(mode, file, state_of(file), known)


def clocks() -> tuple[float, float]:
    """Return the time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def memory() -> float:
    """Return the largest resident set so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    sys.exit(main())
