"""Small data sets of digits in their files, and the command line of adaptation on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastunit import adapt

TINY = ("gen_ch=2", "dis_ch=2", "batch_size=4", "warmup=1", "log_every=1", "test_every=2")
SMALL = ["--iterations", 3, "--device", "cpu"]
SMALL += [word for key in TINY for word in ("--set", key)]
SIZES = {"mnist": (28, 28), "usps": (16, 16), "svhn": (32, 32, 3)}


@pytest.fixture
def save_digits() -> Callable[..., Path]:
    """Return a function: (folder, data set, split, arrays to save instead) -> the file."""

    def save(folder: Path, name: str, split: str, **changes: np.ndarray) -> Path:
        rng = np.random.default_rng([len(name), len(split)])
        arrays = {
            "images": rng.integers(0, 256, (14, *SIZES[name]), np.uint8),
            "labels": np.arange(14, dtype=np.uint8) % 10,
        }
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}_{split}.npz", **(arrays | changes))
        return folder / f"{name}_{split}.npz"

    return save


@pytest.fixture
def folder(save_digits, tmp_path, monkeypatch) -> Path:
    """Return a folder with all three data sets, in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    for name in SIZES:
        for split in ("train", "test"):
            save_digits(tmp_path / "data", name, split)
    return tmp_path / "data"


@pytest.fixture
def command(folder, capsys):
    """Return a function that adapts tiny networks: (exit code, stdout, stderr)."""

    def run(*args: object, small: bool = True) -> tuple[int, str, str]:
        argv = [*(SMALL if small else ()), "--data", folder, *args]
        code = adapt.main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return run
