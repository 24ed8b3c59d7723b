"""Flipped bits in a checkpoint: ``python -m tests.hostile.checkpoints [--count 5000]``.

Flips single bits in every class of bytes of a checkpoint: local headers, the pickle, tensors,
padding, the central directory, its end, the digest. Each must be noticed when the checkpoint is
loaded.
"""

from __future__ import annotations

import argparse
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastunit import config
from fastunit.common.errors import CheckpointError
from fastunit.training import checkpoint
from fastunit.training.state import TrainState
from tests.hostile.kills import SETTINGS


def classes(path: Path) -> dict[str, range]:
    """Return ranges of bytes of a checkpoint by class."""
    with zipfile.ZipFile(path) as archive:
        entries, directory = archive.infolist(), archive.start_dir
        comment = len(archive.comment)
    size = path.stat().st_size
    found = {"directory": range(directory, size - comment - 22)}
    found |= {
        "end": range(size - comment - 22, size - comment),
        "digest": range(size - comment, size),
    }
    data = path.read_bytes()
    for entry in entries:
        at = entry.header_offset
        name, extra = (int.from_bytes(data[at + k : at + k + 2], "little") for k in (26, 28))
        begin = at + 30 + name + extra
        kind = "pickle" if entry.filename.endswith(".pkl") else "tensors"
        found[f"header {at}"] = range(at, at + 30 + name)
        found[f"padding {at}"] = range(at + 30 + name, begin)
        found[f"{kind} {at}"] = range(begin, begin + entry.file_size)
    return {name: bytes_ for name, bytes_ in found.items() if len(bytes_)}


def run(count: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Flip bits, in turn in all classes; return counts by class, and flips not noticed."""
    rng, counts, unnoticed = random.Random(seed), Counter(), []
    with TemporaryDirectory() as folder:
        session = TrainState(config.from_dict(SETTINGS), torch.device("cpu"))
        path = session.save(Path(folder))
        good = path.read_bytes()
        ranges: dict[str, list[range]] = {}
        for name, places in classes(path).items():
            ranges.setdefault(name.partition(" ")[0], []).append(places)
        for index in range(count):
            name = list(ranges)[index % len(ranges)]
            places = rng.choice(ranges[name])
            data, place, bit = bytearray(good), rng.choice(places), rng.randrange(8)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            counts[name] += 1
            try:
                checkpoint.load(path)
            except CheckpointError:
                continue
            unnoticed.append(f"bit {bit} of byte {place}: {name}")
    return counts, unnoticed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if all flips were noticed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.checkpoints")
    parser.add_argument("--count", type=int, default=5000)
    args = parser.parse_args(argv)
    counts, unnoticed = run(args.count)
    print("\n".join(unnoticed[:20]))
    said = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    print(f"{args.count} flips ({said}), {len(unnoticed)} not noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
