"""Checking every image file before training starts.

DALI cannot skip a bad image in the middle of a batch, so nothing unchecked reaches it: each file is
decoded in full by Pillow (which says what is wrong with it) and by DALI (which must agree). Files
found good are remembered in an index by path, size and mtime, and are not read again.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastunit.errors import DataError
from fastunit.files import write_text
from fastunit.paths import cache_dir
from fastunit.pictures import FORMATS, NOT_AN_IMAGE, content

_REMEDY = "Mend or remove them, or leave them out with --set data.skip_bad=true"
_INDEX_VERSION = 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SizeRule:
    """What a domain's pictures are resized and cropped to; None: not resized, not cropped."""

    new_size: int | None
    crop: tuple[int, int] | None  # height, width

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after the resize of the shorter side, rounded just as DALI does.

        That is half up, in float32: computed in float64, 12x102 to 7 would come out one wider.
        """
        if self.new_size is None:
            return height, width
        scale = np.float32(self.new_size) / np.float32(min(height, width))
        half = np.float32(0.5)
        return int(np.float32(height) * scale + half), int(np.float32(width) * scale + half)

    def problem(self, height: int, width: int) -> str | None:
        """Return why a picture of this size cannot be cropped, or None when it can."""
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
    """Return the ``files`` that can be trained on; `validate_all` for a single set."""
    groups = {"files": (files, rule)}
    return validate_all(groups, workers=workers, skip_bad=skip_bad, index=index)["files"]


def validate_all(
    groups: Mapping[str, tuple[Sequence[Path], SizeRule]],
    *,
    workers: int,
    skip_bad: bool,
    index: Path | None = None,
) -> dict[str, tuple[Path, ...]]:
    """Return each group's files that can be trained on, in their order, reading all new ones.

    One progress bar and one report for all groups (domains, splits). ``index`` is where good files
    are remembered (None: images.json in the cache folder); size rules are applied to remembered
    sizes, so another crop needs no reading. With ``skip_bad`` bad files are left out and a warning
    (`logging`) lists and counts them.

    Raises: DataError listing the bad files with their reasons, unless ``skip_bad``; in either
    case when a group loses all its files; and where DALI is not installed.
    """
    files = dict.fromkeys(file for group, _ in groups.values() for file in group)
    if not files:
        return {name: () for name in groups}
    require_dali()
    found = _measure_all(list(files), workers, index or cache_dir() / "images.json")
    good, bad = {}, {}
    for name, (group, rule) in groups.items():
        reasons = {file: _verdict(found[file], rule) for file in group}
        good[name] = tuple(file for file in group if not reasons[file])
        bad |= {file: reason for file, reason in reasons.items() if reason}
    lost = [name for name, (group, _) in groups.items() if group and not good[name]]
    if lost:
        raise DataError(_report(bad, len(files), f"No usable image is left in {', '.join(lost)}"))
    if bad and not skip_bad:
        raise DataError(_report(bad, len(files), _REMEDY))
    if bad:
        _logger.warning(_report(bad, len(files), "They are left out"))
    return good


def problem(file: Path, rule: SizeRule) -> str | None:
    """Read ``file`` and return the reason it cannot be trained on, or None."""
    return _verdict(_measure(file), rule)


def require_dali() -> None:
    """Raise DataError with the remedy where DALI is not installed."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"reading images needs NVIDIA DALI, which cannot be imported ({error}); "
            "install it with: pip install 'fastunit[train]'"
        ) from error


def _report(bad: dict[Path, str], total: int, remedy: str) -> str:
    lines = [f"{len(bad)} of {total} image files cannot be used:"]
    lines += [f"  {file}: {reason}" for file, reason in list(bad.items())[:20]]
    lines += [f"  and {len(bad) - 20} more"] if len(bad) > 20 else []
    return "\n".join([*lines, remedy])


_Found = tuple[int, int] | str  # height and width as DALI decodes it, or what is wrong


def _verdict(found: _Found, rule: SizeRule) -> str | None:
    return found if isinstance(found, str) else rule.problem(*found)


def _measure_all(files: Sequence[Path], workers: int, index: Path) -> dict[Path, _Found]:
    """Measure each file once, from the index where it is unchanged, else in ``workers`` threads."""
    from tqdm import tqdm

    entries = _read_index(index)
    prints = {file: _fingerprint(file) for file in files}
    found: dict[Path, _Found] = {}
    for file, (key, *state) in prints.items():
        entry = entries.get(key)
        if isinstance(entry, list) and len(entry) == 4 and entry[:2] == state:
            found[file] = (entry[2], entry[3])
    new = [file for file in prints if file not in found]
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(_measure, new)
        bar = tqdm(results, "checking images", len(new), unit="image", disable=not new)
        for file, result in zip(new, bar, strict=True):
            found[file] = result
            if not isinstance(result, str):  # bad files are read anew each time: chmod mends one
                key, *state = prints[file]
                entries[key] = [*state, *result]
    finally:  # on Ctrl-C too: what was checked stays checked
        pool.shutdown(cancel_futures=True)
        if new:
            _write_index(entries, index)
    return found


def _fingerprint(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file.resolve()), status.st_size, status.st_mtime_ns


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError):  # none yet, or damaged: it only saves time
        return {}
    valid = isinstance(index, dict) and index.get("version") == _INDEX_VERSION
    return index["files"] if valid and isinstance(index.get("files"), dict) else {}


def _write_index(entries: dict[str, Any], path: Path) -> None:
    try:
        write_text(json.dumps({"version": _INDEX_VERSION, "files": entries}), path)
    except OSError as error:
        _logger.warning("the next run checks all images again: cannot write %s: %s", path, error)


def _measure(file: Path) -> _Found:
    """Decode ``file`` in full and return its (height, width), or what is wrong with it."""
    try:
        return _decode(content(file))
    except DataError as error:
        return str(error)


def _decode(data: bytes) -> _Found:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            kind = f"{image.format} in mode {image.mode}"
            picture = ImageOps.exif_transpose(image)  # decodes in full; refuses truncated files
    except UnidentifiedImageError:
        return NOT_AN_IMAGE
    except Image.DecompressionBombError as error:
        return f"too large: {error}"
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged files
        return f"damaged or truncated: {error}"
    try:
        seen = _decode_by_dali(data)
    except RuntimeError:
        return f"the loader (DALI) cannot decode {kind}; save it as PNG or JPEG"
    return _disagreement(picture, seen, kind) or seen.shape[:2]


def _disagreement(picture: Any, seen: np.ndarray, kind: str) -> str | None:
    """Compare what DALI decoded with Pillow's picture: it reads some rare TIFFs wrongly."""
    if picture.mode == "F":
        low, high = picture.getextrema()
        return None if low >= 0 and high <= 1 else f"{kind}: values {low}..{high} are not in 0..1"
    misread = f"the loader (DALI) misreads {kind}; save it as PNG or JPEG"
    if seen.shape[:2] != (picture.height, picture.width):
        return misread
    if picture.mode.startswith("I"):  # Pillow clips 16 bits where DALI rightly rescales them
        return None
    reference = np.asarray(picture.convert("RGBA"))[::4, ::4, :3].astype(int)
    return misread if np.abs(seen[::4, ::4] - reference).mean() > 4 else None


def _decode_by_dali(data: bytes) -> np.ndarray:
    """Return uint8 [H, W, 3] as DALI's CPU decoder sees it; RuntimeError where it cannot."""
    import nvidia.dali.experimental.dynamic as dynamic
    from nvidia.dali import types

    encoded = np.frombuffer(data, np.uint8)
    return np.asarray(dynamic.decoders.image(encoded, device="cpu", output_type=types.RGB).cpu())
