"""Check every image file before training starts.

DALI cannot skip a bad image in a batch, so only checked files reach it: `image_io.decode` decodes
each file completely with Pillow (which says what is wrong with it) and with DALI (which must
agree), in a process of its own (`decoding`). Good files are recorded in `index` and not read again
until they change, and in `passed`, with which training compares what it reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from fastunit.common import extras, progress, text, waiting
from fastunit.common.errors import DataError
from fastunit.common.files import cache_dir
from fastunit.data import decoding, passed, value_ranges
from fastunit.data.decoding import Decoded
from fastunit.data.image_io import Reading
from fastunit.data.index import PART, Index, Key, key_of

INDEX = "images.sqlite3"  # in the cache folder
_REMEDY = "Repair or remove them, or skip them with --set data.skip_bad=true"
_DEFINITION = 4  # version of the decoding: increase with every change to image_io or image_kinds
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
        """Return why an image of this size is too small for the crop, or None if it is not."""
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
) -> tuple[Path, ...]:
    """Return the ``files`` that can be trained on; as `validate_all`, for a single group."""
    groups = {"files": (files, rule)}
    return validate_all(groups, workers=workers, skip_bad=skip_bad, index=index)["files"]


def validate_all(
    groups: Mapping[str, tuple[Sequence[Path], SizeRule]],
    *,
    workers: int,
    skip_bad: bool,
    index: Path | None = None,
) -> dict[str, tuple[Path, ...]]:
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
            a group has no good file, or DALI is not installed.
    """
    files = dict.fromkeys((file, rule.reading) for group, rule in groups.values() for file in group)
    if not files:
        return {name: () for name in groups}
    require_dali()
    found = _measure_all(list(files), workers, index or cache_dir() / INDEX)
    good: dict[str, tuple[Path, ...]] = {}
    bad: dict[Path, str] = {}
    total = len({file for file, _ in files})
    for name, (group, rule) in groups.items():
        kept = []
        for file in group:
            measured = found[file, rule.reading]
            reason = _verdict(measured, rule)
            if isinstance(measured, str) or reason:
                bad[file] = str(reason)
                continue
            kept.append(file)
            passed.add(file, measured.digest, measured.height, measured.width)
        good[name] = tuple(kept)
    lost = [name for name, (group, _) in groups.items() if group and not good[name]]
    if lost:
        raise DataError(_report(bad, total, f"No usable image is left in {', '.join(lost)}"))
    if bad and not skip_bad:
        raise DataError(_report(bad, total, _REMEDY))
    if bad:
        _logger.warning(_report(bad, total, "They are left out"))
    value_ranges.warn_of_few_levels(
        (rule.reading, measured.values)
        for name, (_, rule) in groups.items()
        for file in good[name]
        if isinstance(measured := found[file, rule.reading], Decoded)
    )
    return good


def problem(file: Path, rule: SizeRule) -> str | None:
    """Read ``file`` and return the reason why it cannot be trained on, or None."""
    return _verdict(_measure(file, rule.reading), rule)


def require_dali() -> None:
    """Raise DataError, with the remedy, if DALI is not installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading images needs NVIDIA DALI, which cannot be imported ({error}); "
            f"install it with: {extras.install('train')}"
        ) from error


def _report(bad: dict[Path, str], total: int, remedy: str) -> str:
    lines = [f"{len(bad)} of {total} image files cannot be used:"]
    lines += [f"  {text.name(file)}: {reason}" for file, reason in list(bad.items())[:20]]
    lines += [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([*lines, remedy])


_Found = Decoded | str  # a string: what is wrong with the file
_Wanted = tuple[Path, Reading]


def _verdict(found: _Found, rule: SizeRule) -> str | None:
    return found if isinstance(found, str) else _size_problem(rule, found.height, found.width)


@lru_cache(maxsize=10_000)  # of very many images few sizes are different
def _size_problem(rule: SizeRule, height: int, width: int) -> str | None:
    try:
        rule.reading.limits.check_size(width, height)
    except DataError as error:
        return str(error)
    return rule.problem(height, width)


def _measure_all(files: Sequence[_Wanted], workers: int, index: Path) -> dict[_Wanted, _Found]:
    """Return each file's measurement: from the index if unchanged, else by decoding it."""
    found: dict[_Wanted, _Found] = {}
    new: list[tuple[_Wanted, Key]] = []
    folders: dict[str, bytes] = {}
    with Index(index, _index_version()) as entries:
        for start in range(0, len(files), PART):
            part = files[start : start + PART]
            keys = [key_of(file, _mode(reading), folders) for file, reading in part]
            for wanted, key, known in zip(part, keys, entries.find(keys), strict=True):
                if known is None:
                    new.append((wanted, key))
                else:
                    found[wanted] = known
        for (wanted, key), result in _measure_new(new, workers):
            found[wanted] = result
            if not isinstance(result, str):  # bad files are read every time: chmod may fix one
                entries.add(key, result)
    return found


def _measure_new(
    new: Sequence[tuple[_Wanted, Key]], workers: int
) -> Iterator[tuple[tuple[_Wanted, Key], _Found]]:
    """Decode files in processes, with a progress bar; they end early with an exception."""
    if not new:
        return
    workers = max(1, min(workers, os.cpu_count() or 1, len(new)))
    pool, todo = ThreadPoolExecutor(workers), iter(new)
    pending: list[tuple[tuple[_Wanted, Key], Future[_Found]]] = []
    done = False
    try:
        with progress.bar(desc="checking images", total=len(new), unit="image") as bar:
            while True:
                while len(pending) < workers * _AHEAD and (item := next(todo, None)):
                    pending.append((item, pool.submit(_measure, *item[0])))
                if not pending:
                    break
                item, future = pending.pop(0)
                with waiting.on(lambda item=item: f"the check of {text.name(item[0][0])}"):
                    result = waiting.result(future)
                yield item, result
                bar.update()
        done = True
    finally:
        if not done:  # on Ctrl-C: threads wait for processes, which end
            pool.shutdown(wait=False, cancel_futures=True)
            decoding.stop()
        pool.shutdown()


def _mode(reading: Reading) -> str:
    return f"{reading.channels} {'16' if reading.value_range else '8'}"


def _index_version() -> str:
    """Return what the results depend on apart from the file: our version and both decoders'."""
    import PIL
    from nvidia import dali

    return f"{_DEFINITION} {PIL.__version__} {dali.__version__}"


def _measure(file: Path, reading: Reading) -> _Found:
    """Decode ``file`` completely and measure it, or return what is wrong with it."""
    try:
        return decoding.measure(file, reading)
    except DataError as error:
        return str(error)
