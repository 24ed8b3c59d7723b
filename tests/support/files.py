"""What is in a folder; images, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastunit.common import files


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every entry below `folder`: a file's content, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def cut(path: Path) -> None:
    """Leave the first two thirds of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip_byte(path: Path, index: int | None = None) -> None:
    """Turn the bits of the byte at `index`, or of the one in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if index is None else index] ^= 255
    path.write_bytes(data)


def with_nan(model: Path, folder: Path) -> Path:
    """Return a checkpoint as `model`, in another folder, with a weight that is NaN."""
    state = torch.load(model, weights_only=True)
    state["unit"]["gen_a.enc.model.0.conv.weight"][0] = float("nan")
    files.save(state, folder / "nan.pt")
    return folder / "nan.pt"


def picture(width: int = 48, height: int = 36, mode: str = "RGB") -> Image.Image:
    """Return an image of smooth colours."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / 7 + k) * np.cos(y / 5 - k) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def saved(path: Path, mode: str = "RGB", **options) -> Path:
    """Write a `picture` and return its path."""
    picture(mode=mode).save(path, **options)
    return path
