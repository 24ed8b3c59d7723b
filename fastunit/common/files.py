"""Atomic file writes, and reading of checkpoints without unpickling code."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastunit.common.errors import CheckpointError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` at the end; creates the folder.

    `path` is always either the old file or the complete new one: the content is synced to disk
    before the rename, the folder after it. On an exception `path` is unchanged and the temporary
    file removed. The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        FileExistsError: `path` is a folder, device or pipe.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file atomically."""
    write_text(json.dumps(value, indent=2) + "\n", path)


def save(value: Any, path: Path) -> None:
    """Write tensors and plain values atomically, for `read`."""
    with atomic(path) as temporary:
        torch.save(value, temporary)


def read(path: Path) -> Any:
    """Load what `save` wrote, onto the CPU, with ``weights_only=True``: a file cannot run code.

    Raises:
        CheckpointError: the file is missing, damaged or not such a file.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load does not check the CRCs
                if broken := archive.testzip():
                    raise CheckpointError(f"checkpoint {path} is damaged: bad CRC of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except CheckpointError:
        raise
    except Exception as error:  # on damaged files the unpickler raises many kinds of exceptions
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"checkpoint {path} is damaged or unreadable: {reason}") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_dir() -> Path:
    """Return the folder for generated data and indexes; it may not exist yet.

    ``$FASTUNIT_CACHE``, else ``$XDG_CACHE_HOME/fastunit``, else ``~/.cache/fastunit``.
    """
    if explicit := os.environ.get("FASTUNIT_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastunit"
