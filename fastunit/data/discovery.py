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
from fastunit.data.file_list import Files

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
EXTENSIONS = (*IMAGES, ".npy")
SPLITS = {"train_a": "trainA", "train_b": "trainB", "test_a": "testA", "test_b": "testB"}
_LONGEST = 2**30  # bytes of a list file
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domains:
    """The image files of a run, in a fixed order; the test sets may be empty."""

    train_a: Sequence[Path]
    train_b: Sequence[Path]
    test_a: Sequence[Path]
    test_b: Sequence[Path]


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


def image_files(folder: Path, extensions: Sequence[str] = EXTENSIONS) -> Files:
    """Return the image files under ``folder``, by extension, sorted by path; links are followed.

    Hidden files and folders are ignored; a folder reached twice through links is read once. Files
    with other extensions are ignored too, with a warning that counts them.

    Raises:
        DataError: there is no image, or a folder cannot be read.
    """
    images: list[str] = []
    others: list[str] = []
    for file in _visible_files(os.fspath(folder)):
        image = file[file.rfind(".") :].lower() in extensions
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
    return Files(images)


def _folder_and_list(config: Any, split: str) -> tuple[str | None, str | None]:
    return getattr(config, f"data_folder_{split}"), getattr(config, f"data_list_{split}")


def _from_root(root: Path) -> dict[str, Sequence[Path]]:
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


def _from_pair(split: str, folder: str | None, names: str | None) -> Sequence[Path]:
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


def _read_list(path: Path, folder: Path) -> Files:
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
    return Files(files)


def _visible_files(root: str) -> Iterator[str]:
    """Yield the paths of files below a folder in the order in which Paths are sorted."""
    seen: set[str] = set()
    open_folders = [iter(_entries(root, seen))]
    while open_folders:
        path, is_folder = next(open_folders[-1], (None, False))
        if path is None:
            open_folders.pop()
        elif is_folder:
            open_folders.append(iter(_entries(path, seen)))
        else:
            yield path


def _entries(folder: str, seen: set[str]) -> list[tuple[str, bool]]:
    """Return the sorted paths in a folder, and whether each is a folder; none if it was seen."""
    real = os.path.realpath(folder)
    if real in seen:  # a link back up, or a second way in
        return []
    seen.add(real)
    start = "" if folder == "." else os.path.join(folder, "")
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, _is_folder(entry)) for entry in entries if entry.name[0] != "."]
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error
    return [(start + name, is_folder) for name, is_folder in sorted(found)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
