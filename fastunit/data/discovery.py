"""Finding a run's image files: the folders trainA, trainB, ... or the release's list files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastunit.common import regular
from fastunit.common.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
EXTENSIONS = (*IMAGES, ".npy")
SPLITS = {"train_a": "trainA", "train_b": "trainB", "test_a": "testA", "test_b": "testB"}
_LONGEST = 2**30  # bytes of a list file
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domains:
    """The image files of a run, in a fixed order; the test sets may be empty."""

    train_a: tuple[Path, ...]
    train_b: tuple[Path, ...]
    test_a: tuple[Path, ...]
    test_b: tuple[Path, ...]


def find_domains(config: Any) -> Domains:
    """Find the files that ``config.data_root`` or ``data_folder_*``/``data_list_*`` name.

    ``data_root`` holds trainA, trainB and, if any, testA and testB, searched as `image_files`
    does. A list file names one file a line, relative to its ``data_folder_*``; a folder without
    a list is searched.

    Raises:
        DataError: a folder, domain or list is missing or empty.
    """
    pairs = {split: _folder_and_list(config, split) for split in SPLITS}
    listed = any(folder or names for folder, names in pairs.values())
    if config.data_root and listed:
        raise DataError(
            f"both data_root ({config.data_root}) and data_folder_*/data_list_* are given; "
            "keep one of them"
        )
    if config.data_root:
        return Domains(**_from_root(Path(config.data_root).expanduser()))
    if listed:
        return Domains(**{split: _from_pair(split, *pair) for split, pair in pairs.items()})
    raise DataError(
        "no data: give data_root (--data DIR, holding trainA and trainB), "
        "or data_folder_train_a and data_folder_train_b"
    )


def image_files(folder: Path, extensions: Sequence[str] = EXTENSIONS) -> tuple[Path, ...]:
    """Return the image files under ``folder``, by extension, sorted by path; links are followed.

    Hidden files and folders are ignored; a folder reached twice through links is read once. Files
    with other extensions are ignored too, with a warning that counts them.

    Raises:
        DataError: there is no image, or a folder cannot be read.
    """
    images: list[str] = []
    others: list[str] = []
    for file in _visible_files(folder):  # text: a million Paths take many seconds to sort
        image = os.path.splitext(file)[1].lower() in extensions
        (images if image else others).append(file)
    known = " ".join(extensions)
    if not images:
        example = f" such as {os.path.basename(others[0])}" if others else ""
        holds = f"; it holds {len(others)} other files{example}" if others else ""
        raise DataError(f"{folder} holds no images ({known}){holds}")
    if others:
        _logger.warning(
            "%s: ignored %d files such as %s (images are %s)",
            *(folder, len(others), os.path.basename(others[0]), known),
        )
    images.sort(key=lambda file: file.split(os.sep))  # as Paths are sorted
    return tuple(map(Path, images))


def _folder_and_list(config: Any, split: str) -> tuple[str | None, str | None]:
    return getattr(config, f"data_folder_{split}"), getattr(config, f"data_list_{split}")


def _from_root(root: Path) -> dict[str, tuple[Path, ...]]:
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"data_root {root} {what}; it must be a folder with trainA and trainB")
    missing = [n for s, n in SPLITS.items() if "train" in s and not (root / n).is_dir()]
    if missing:
        holds = ", ".join(sorted(p.name for p in root.iterdir() if p.name[0] != ".")[:10])
        raise DataError(
            f"data_root {root} has no folder {' and no folder '.join(missing)} "
            f"(looked for {root / 'trainA'} and {root / 'trainB'}; it holds: {holds or 'nothing'})"
        )
    return {s: image_files(root / n) if (root / n).is_dir() else () for s, n in SPLITS.items()}


def _from_pair(split: str, folder: str | None, names: str | None) -> tuple[Path, ...]:
    if not folder:
        if names:
            raise DataError(f"data_list_{split} ({names}) needs data_folder_{split} as well")
        if "train" in split:
            raise DataError(f"domain {split[-1]} has no training images: set data_folder_{split}")
        return ()
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise DataError(f"data_folder_{split} {where} is not a folder")
    return _read_list(Path(names).expanduser(), where) if names else image_files(where)


def _read_list(path: Path, folder: Path) -> tuple[Path, ...]:
    try:
        lines = regular.read(path, _LONGEST).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"not UTF-8 text: {error}"
        raise DataError(f"cannot read the list file {path}: {reason}") from error
    files = tuple(folder / line.strip() for line in lines if line.strip())
    if not files:
        raise DataError(f"the list file {path} names no files")
    absent = [str(file) for file in files if not file.exists()]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise DataError(
            f"the list file {path} names {len(absent)} files that do not exist "
            f"(relative to {folder}): {', '.join(absent[:5])}{more}"
        )
    return files


def _visible_files(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up, or a second way in
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        yield from (os.path.join(parent, name) for name in sorted(names) if name[0] != ".")
