"""Check every image file before training starts.

DALI cannot skip a bad image in a batch, so only checked files reach it: `image_io.decode` decodes
each file completely with Pillow (which says what is wrong with it) and with DALI (which must
agree). Good files are recorded in an index by path, size, mtime and decoding options, and are not
read again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastunit.common import extras, progress
from fastunit.common.errors import ConfigError, DataError
from fastunit.common.files import cache_dir, write_text
from fastunit.data import image_io, value_ranges
from fastunit.data.image_io import Reading
from fastunit.data.image_kinds import kind_of
from fastunit.data.value_ranges import Values

_REMEDY = "Repair or remove them, or skip them with --set data.skip_bad=true"
_DEFINITION = 2  # version of the decoding: increase with every change to image_io or image_kinds
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
        workers: threads.
        skip_bad: leave bad files out, with a warning that lists and counts them.
        index: file in which good files are recorded; None: images.json in the cache folder.

    Raises:
        ConfigError: channels are neither 1 nor 3.
        DataError: files are bad and ``skip_bad`` is off (the message lists them with the reasons),
            a group has no good file, or DALI is not installed.
    """
    for _, rule in groups.values():
        check_channels(rule.reading.channels)
    files = dict.fromkeys((file, rule.reading) for group, rule in groups.values() for file in group)
    if not files:
        return {name: () for name in groups}
    require_dali()
    found = _measure_all(list(files), workers, index or cache_dir() / "images.json")
    good, bad, total = {}, {}, len({file for file, _ in files})
    for name, (group, rule) in groups.items():
        reasons = {file: _verdict(found[file, rule.reading], rule) for file in group}
        good[name] = tuple(file for file in group if not reasons[file])
        bad |= {file: reason for file, reason in reasons.items() if reason}
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
        if isinstance(measured := found[file, rule.reading], _Measured)
    )
    return good


def problem(file: Path, rule: SizeRule) -> str | None:
    """Read ``file`` and return the reason why it cannot be trained on, or None."""
    return _verdict(_measure(file, rule.reading), rule)


def check_channels(channels: int) -> None:
    """Raise ConfigError unless ``channels`` is 1 or 3."""
    if channels not in (1, 3):
        raise ConfigError(
            f"input_dim is {channels}; images are read with 1 (grayscale) or 3 (RGB) channels"
        )


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
    lines += [f"  {file}: {reason}" for file, reason in list(bad.items())[:20]]
    lines += [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([*lines, remedy])


@dataclass(frozen=True)
class _Measured:
    """A good file's size as decoded by DALI and, if it has 16 bits, the values it uses."""

    height: int
    width: int
    values: Values | None


_Found = _Measured | str  # a string: what is wrong with the file


def _verdict(found: _Found, rule: SizeRule) -> str | None:
    return found if isinstance(found, str) else rule.problem(found.height, found.width)


def _measure_all(
    files: Sequence[tuple[Path, Reading]], workers: int, index: Path
) -> dict[tuple[Path, Reading], _Found]:
    """Return each file's measurement: from the index if unchanged, else read in threads."""
    entries = _read_index(index)
    prints = {wanted: _fingerprint(*wanted) for wanted in files}
    found: dict[tuple[Path, Reading], _Found] = {}
    for wanted, (key, *state) in prints.items():
        if entry := _remembered(entries.get(key), state):
            found[wanted] = entry
    new = [wanted for wanted in prints if wanted not in found]
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        results = pool.map(_measure, *zip(*new, strict=True)) if new else ()
        if new:
            results = progress.bar(results, desc="checking images", total=len(new), unit="image")
        for wanted, result in zip(new, results, strict=True):
            found[wanted] = result
            if not isinstance(result, str):  # bad files are read every time: chmod may fix one
                key, *state = prints[wanted]
                entries[key] = [*state, result.height, result.width, result.values]
    finally:  # on Ctrl-C too: keep the results so far
        pool.shutdown(cancel_futures=True)
        if new:
            _write_index(entries, index)
    return found


def _remembered(entry: Any, state: list[int]) -> _Measured | None:
    if not isinstance(entry, list) or len(entry) != 5 or entry[:2] != state:
        return None
    height, width, values = entry[2:]
    return _Measured(height, width, values and Values(*values))


def _fingerprint(file: Path, reading: Reading) -> tuple[str, int, int]:
    mode = f"{reading.channels} {'16' if reading.value_range else '8'}"
    try:
        status = file.stat()
    except OSError:
        return f"{mode} {file}", -1, -1
    return f"{mode} {file.resolve()}", status.st_size, status.st_mtime_ns


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError):  # missing or damaged; the index only saves time
        return {}
    valid = isinstance(index, dict) and index.get("version") == _index_version()
    return index["files"] if valid and isinstance(index.get("files"), dict) else {}


def _index_version() -> list[Any]:
    """Return what the results depend on apart from the file: our version and both decoders'."""
    import PIL
    from nvidia import dali

    return [_DEFINITION, PIL.__version__, dali.__version__]


def _write_index(entries: dict[str, Any], path: Path) -> None:
    try:
        write_text(json.dumps({"version": _index_version(), "files": entries}), path)
    except OSError as error:
        _logger.warning("the next run checks all images again: cannot write %s: %s", path, error)


def _measure(file: Path, reading: Reading) -> _Found:
    """Decode ``file`` completely and measure it, or return what is wrong with it."""
    try:
        data = image_io.content(file)
        height, width, channels = image_io.decode(data, reading).shape
        deep = kind_of(data).deep
        values = value_ranges.used(image_io.sixteen_bits(data, channels)) if deep else None
    except DataError as error:
        return str(error)
    return _Measured(height, width, values)
