"""Check every image file before training starts.

DALI cannot skip a bad image in a batch, so only checked files reach it: `image_io.decode` decodes
each file completely with Pillow (which says what is wrong with it) and, where it reads the images,
with DALI (which must agree), in a process of its own (`decoding`). Good files are recorded in
`index` and not read again until they change, and in `passed`, with which training compares what it
reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastunit.common import progress, text, waiting
from fastunit.common.errors import DataError
from fastunit.common.files import cache_dir
from fastunit.data import dali, decoding, exact, passed, value_ranges
from fastunit.data.decoding import Decoded
from fastunit.data.file_list import Files
from fastunit.data.image_io import Reading
from fastunit.data.index import PART, Index, state_of
from fastunit.data.value_ranges import Values

INDEX = "images.sqlite3"  # in the cache folder
_REMEDY = "Repair or remove them, or skip them with --set data.skip_bad=true"
_DEFINITION = 5  # of the decoding: increase with every change to image_io, image_kinds or exact
_AHEAD = 4  # files handed to each process before the first is done
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SizeRule:
    """How a domain's images are read, resized and cropped; None: not resized, not cropped."""

    new_size: int | None
    crop: tuple[int, int] | None  # height, width
    reading: Reading = field(default_factory=Reading)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after the resize of the shorter side, rounded exactly as DALI.

        DALI rounds half up in float32: in float64, 12x102 to 7 would be one pixel wider.
        """
        if self.new_size is None:
            return height, width
        scale = np.float32(self.new_size) / np.float32(min(height, width))
        half = np.float32(0.5)
        return int(np.float32(height) * scale + half), int(np.float32(width) * scale + half)

    def problem(self, height: int, width: int) -> str | None:
        """Return why an image of this size is too large to be read, or too small for the crop."""
        try:
            self.reading.limits.check_size(width, height)
        except DataError as error:
            return str(error)
        if self.crop is None:
            return None
        new_height, new_width = self.resized(height, width)
        if new_height >= self.crop[0] and new_width >= self.crop[1]:
            return None
        resized = f", {new_width}x{new_height} after resizing" if self.new_size else ""
        return (
            f"too small: {width}x{height} pixels{resized}, "
            f"for a crop of {self.crop[1]}x{self.crop[0]} (width x height)"
        )


def validate(
    files: Sequence[Path],
    *,
    rule: SizeRule,
    workers: int,
    skip_bad: bool,
    index: Path | None = None,
) -> Files:
    """Return the ``files`` that can be trained on; as `validate_all`, for a single group."""
    groups = {"files": (files, rule)}
    return validate_all(groups, workers=workers, skip_bad=skip_bad, index=index)["files"]


def validate_all(
    groups: Mapping[str, tuple[Sequence[Path], SizeRule]],
    *,
    workers: int,
    skip_bad: bool,
    index: Path | None = None,
) -> dict[str, Files]:
    """Return each group's files that can be trained on, in their order; reads all new files.

    One progress bar and one report cover all groups (domains, splits). Size rules are applied to
    the sizes in the index, so another crop size needs no reading. Also warns of 16-bit files whose
    values fall on few 8-bit levels.

    Args:
        groups: files, and how they are read, by the groups' names.
        workers: processes.
        skip_bad: leave bad files out, with a warning that lists and counts them.
        index: file in which good files are recorded; None: INDEX in the cache folder.

    Raises:
        DataError: files are bad and ``skip_bad`` is off (the message lists them with the reasons),
            a group has no good file, or data.loader=dali and DALI is not installed.
    """
    checked = {name: _Group(Files(files), rule) for name, (files, rule) in groups.items()}
    if not any(group.files for group in checked.values()):
        return {name: group.files for name, group in checked.items()}
    for group in checked.values():
        dali.require(group.rule.reading.loader)
    _check_all(list(checked.values()), workers, index or cache_dir() / INDEX)
    good = {name: group.good() for name, group in checked.items()}
    lost = [name for name, group in checked.items() if group.files and not good[name]]
    if lost:
        raise DataError(_report(checked.values(), f"No usable image is left in {', '.join(lost)}"))
    if any(group.bad for group in checked.values()):
        if not skip_bad:
            raise DataError(_report(checked.values(), _REMEDY))
        _logger.warning(_report(checked.values(), "They are left out"))
    value_ranges.warn_of_few_levels(
        (group.rule.reading, group.values) for group in checked.values()
    )
    return good


def problem(file: Path, rule: SizeRule) -> str | None:
    """Read ``file`` and return the reason why it cannot be trained on, or None."""
    found = _measure(file, rule.reading)
    return found if isinstance(found, str) else rule.problem(found.height, found.width)


class _Group:
    """Files that are read in one way, and the verdicts on them."""

    def __init__(self, files: Files, rule: SizeRule) -> None:
        self.files = files
        self.rule = replace(rule, reading=exact.of_domain(files, rule.reading))
        self.new: list[str] = []  # files of which the index knows nothing
        self.bad: dict[str, str] = {}  # file -> reason
        self.values: Values | None = None  # of all good 16-bit files
        self._sizes: dict[tuple[int, int], str | None] = {}  # of many images few are different

    def judge(self, file: str, found: Decoded | str) -> None:
        """Take what is known of a file: it is bad, or recorded in `passed`."""
        if isinstance(found, str):
            self.bad[file] = found
            return
        height, width, digest, values = found
        size = height, width
        if size not in self._sizes:
            self._sizes[size] = self.rule.problem(height, width)
        if reason := self._sizes[size]:
            self.bad[file] = reason
            return
        passed.add(file, digest, height, width)
        if values is not None:
            self.values = value_ranges.merged([values, *filter(None, [self.values])])

    def good(self) -> Files:
        """Return the files that are not bad."""
        if not self.bad:
            return self.files
        return Files(file for file in self.files.names if file not in self.bad)


def _report(groups: Iterable[_Group], remedy: str) -> str:
    files = dict.fromkeys(file for group in groups for file in group.files.names)
    found = {file: reason for group in groups for file, reason in group.bad.items()}
    bad = [file for file in files if file in found]
    lines = [f"{len(bad)} of {len(files)} image files cannot be used:"]
    lines += [f"  {text.name(file)}: {found[file]}" for file in bad[:20]]
    lines += [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([*lines, remedy])


def _check_all(groups: Sequence[_Group], workers: int, index: Path) -> None:
    """Judge all files: by the index if they are unchanged, else by decoding them."""
    with Index(index, _index_version()) as entries:
        for group in groups:
            mode, names = _mode(group.rule.reading), group.files.names
            for start in range(0, len(names), PART):
                part = names[start : start + PART]
                for file, known in zip(part, entries.find(mode, part), strict=True):
                    if known is None:
                        group.new.append(file)
                    else:
                        group.judge(file, known)
        for new, state, result in _measure_new(groups, entries, workers):
            new.group.judge(new.file, result)
            if not isinstance(result, str):  # bad files are read every time: chmod may fix one
                entries.add(new.mode, new.file, state, result)


class _New(NamedTuple):
    """A file to be decoded, for one of the groups that it is in."""

    group: _Group
    file: str
    mode: str


def _measure_new(
    groups: Sequence[_Group], entries: Index, workers: int
) -> Iterator[tuple[_New, bytes, Decoded | str]]:
    """Decode files in processes, with a progress bar; they end early with an exception."""
    total = sum(len(group.new) for group in groups)
    if not total:
        return
    workers = max(1, min(workers, os.cpu_count() or 1, total))
    todo = (_New(group, file, _mode(group.rule.reading)) for group in groups for file in group.new)
    pool = ThreadPoolExecutor(workers)
    pending: list[tuple[_New, bytes, Future[Decoded | str]]] = []
    done = False
    try:
        with progress.bar(desc="checking images", total=total, unit="image") as bar:
            while True:
                while len(pending) < workers * _AHEAD and (new := next(todo, None)):
                    pending.append((new, state_of(new.file), _submit(pool, new, entries)))
                if not pending:
                    break
                new, state, future = pending.pop(0)
                with waiting.on(lambda new=new: f"the check of {text.name(new.file)}"):
                    result = waiting.result(future)
                yield new, state, result
                bar.update()
        done = True
    finally:
        if not done:  # on Ctrl-C: threads wait for processes, which end
            pool.shutdown(wait=False, cancel_futures=True)
            decoding.stop()
        pool.shutdown()


def _submit(pool: ThreadPoolExecutor, new: _New, entries: Index) -> Future[Decoded | str]:
    """Decode a file, unless that was done meanwhile for another group."""
    (known,) = entries.find(new.mode, [new.file])
    if known is None:
        return pool.submit(_measure, Path(new.file), new.group.rule.reading)
    future: Future[Decoded | str] = Future()
    future.set_result(known)
    return future


def _mode(reading: Reading) -> str:
    """Return how files are read, as far as the result of their check depends on it."""
    decoder = "" if dali.used(reading.loader) else " pillow"
    bits = "16" if reading.value_range else "32" if reading.arrays else "8"
    return f"{reading.channels} {bits}{decoder}"


def _index_version() -> str:
    """Return what the results depend on apart from the file: our version and both decoders'."""
    import PIL

    return f"{_DEFINITION} {PIL.__version__} {dali.version()}"


def _measure(file: Path, reading: Reading) -> Decoded | str:
    """Decode ``file`` completely and measure it, or return what is wrong with it."""
    try:
        return decoding.measure(file, reading)
    except DataError as error:
        return str(error)
