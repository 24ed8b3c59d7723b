"""SHA-256 of short seeded trainings: ``python -m bench.experiments.fingerprint [DATA]``.

Trains the demo, the paper's networks and, with DATA (a folder with MNIST and USPS), the digits
for a few iterations with the command lines, on one thread, and prints the SHA-256 of all tensors of
each final checkpoint. Run it before and after a refactoring, on the same machine: equal lines mean
bit-identical training. The last column is the number of tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

COMMON = "--seed 5 --device cpu --output"
RUNS = {
    "demo": "fastunit.train --config demo --max-iter 20",
    "paper": "fastunit.train --config paper --max-iter 6 --set data.builtin=scenes "
    "--set paper.gen.ch=8 --set paper.dis.ch=8 --set new_size=64 "
    "--set crop_image_height=64 --set crop_image_width=64 --set batch_size=1",
    "digits": "fastunit.adapt --source mnist --target usps --set gen_ch=4 --set dis_ch=4 "
    "--set batch_size=8 --set iterations=12 --set warmup=6 --set test_every=12",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0: done, 1: a run has failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.fingerprint", description=__doc__
    )
    parser.add_argument("data", type=Path, nargs="?", help="folder with MNIST and USPS")
    args = parser.parse_args(argv)
    for name, words in RUNS.items():
        if name == "digits":
            if args.data is None:
                print("digits  left out: no DATA", flush=True)
                continue
            words += f" --data {args.data}"
        with TemporaryDirectory() as folder:
            run = Path(folder, "run")
            command = [sys.executable, "-m", *words.split(), *COMMON.split(), str(run)]
            one = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=one, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} failed:", done.stderr[-2000:], sep="\n")
                return 1
            print(f"{name:8}{digest(run)}", flush=True)
    return 0


def digest(run: Path) -> str:
    """Return a SHA-256 of all tensors in a run's newest checkpoint, and their number."""
    newest = max(run.rglob("*.pt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    found, count = hashlib.sha256(), 0
    for key, tensor in _tensors(torch.load(newest, weights_only=True)):
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        count += 1
    return f"{found.hexdigest()}  {count}"


def _tensors(value: Any, key: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in a nested value, sorted by key."""
    if isinstance(value, torch.Tensor):
        yield key, value
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from _tensors(value[name], f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{key}.{index}")


if __name__ == "__main__":
    sys.exit(main())
