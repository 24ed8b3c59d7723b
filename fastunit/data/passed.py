"""The files that have passed the check in this process, with their digests and sizes.

Training and evaluation read only what passed: `verify` compares the content that they read. Kept
in one table for the process, as every reader is to obey it: about 150 bytes a file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from fastunit.common.errors import DataError
from fastunit.data.image_worker import DIGEST

_SIZES = struct.Struct("<II")
_passed: dict[str, bytes] = {}  # path -> digest, height, width


def add(file: str | os.PathLike[str], digest: bytes, height: int, width: int) -> None:
    """Record a file that passed; its decoded size is in pixels."""
    _passed[os.fspath(file)] = digest + _SIZES.pack(height, width)


def size(file: Path) -> tuple[int, int] | None:
    """Return a file's decoded height and width; None if it was not checked."""
    entry = _passed.get(os.fspath(file))
    if entry is None:
        return None
    height, width = _SIZES.unpack(entry[DIGEST:])
    return height, width


def verify(file: Path, data: bytes) -> None:
    """Raise DataError if `data` is not the content with which the file passed the check."""
    entry = _passed.get(os.fspath(file))
    if entry and hashlib.blake2b(data, digest_size=DIGEST).digest() != entry[:DIGEST]:
        raise DataError("its content is another one than when it was checked")
