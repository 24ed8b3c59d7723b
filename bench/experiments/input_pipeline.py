"""Loading of large photographs: ``python -m bench.experiments.input_pipeline [--workers 1]``.

256x256 crops of JPEG files of 1280x853 pixels, resized to 286, in batches of 8: fastunit's loader
(DALI) against bench/step/loaders.py (Pillow in the processes of a DataLoader), with as many threads
as processes, taking turns in the same run. Memory is the sum of the proportional sets (PSS) of the
process and its children.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from bench.step.loaders import pillow_batches
from fastunit.data.pipeline import DomainLoader

SIZE, CROP, BATCH = 286, (256, 256), 8
CPU = torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.input_pipeline")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=12, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        files = photographs(Path(folder), 32)
        options = {"batch_size": BATCH, "crop": CROP, "new_size": SIZE, "device": CPU}
        empty = memory()
        ours = DomainLoader(files, channels=3, seed=0, stream=0, threads=args.workers, **options)
        next(ours)
        of_ours = memory() - empty
        theirs = pillow_batches(files, workers=args.workers, **options)
        next(theirs)
        of_theirs = memory() - empty - of_ours
        rates: dict[str, list[float]] = {"fastunit": [], "Pillow": []}
        for _ in range(args.rounds):
            for name, loader in (("fastunit", ours), ("Pillow", theirs)):
                rates[name].append(rate(loader, args.batches))
    mine, other = (statistics.median(values) for values in rates.values())
    print(f"workers {args.workers}: fastunit {mine:.1f} images/s, {of_ours:.0f} MB more; ")
    print(f"Pillow {other:.1f} images/s, {of_theirs:.0f} MB more; ratio {mine / other:.2f}")
    return 0


def photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 1280x853 pixels with coarse and fine detail."""
    rng, files = np.random.default_rng(0), []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((1280, 853), Image.Resampling.BICUBIC))
        pixels = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{index}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


def rate(loader: Iterator[torch.Tensor], batches: int) -> float:
    """Return images per second, without what was prepared before."""
    for _ in range(3):
        next(loader)
    begun = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * BATCH / (time.perf_counter() - begun)


def memory() -> float:
    """Return the proportional sets of this process and its children, in MB."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in (os.getpid(), *children):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3


if __name__ == "__main__":
    sys.exit(main())
