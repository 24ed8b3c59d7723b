"""The 16-bit values that a domain uses; a warning if they fall on few 8-bit levels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fastunit.data.image_io import Reading

FEW = 32  # of 255 levels
_logger = logging.getLogger(__name__)


class Values(NamedTuple):
    """An image's values: minimum, 0.1 and 99.9 percentiles, maximum."""

    least: int
    low: int
    high: int
    largest: int


def used(values: np.ndarray) -> Values:
    """Return the range of an image's values, uint16 of any shape."""
    ends = np.percentile(values, [0, 0.1, 99.9, 100], method="nearest")
    return Values(*(int(end) for end in ends))


def merged(parts: Sequence[Values]) -> Values:
    """Return the range of all images together."""
    leasts, lows, highs, largests = zip(*parts, strict=True)
    return Values(min(leasts), min(lows), max(highs), max(largests))


def warn_of_few_levels(files: Iterable[tuple[Reading, Values | None]]) -> None:
    """Warn, once per domain, if the values of all its files fall on few 8-bit levels.

    Decided by percentiles, so that a dead pixel does not hide a narrow range.
    """
    domains: dict[Reading, list[Values]] = {}
    for reading, values in files:
        if values is not None:
            domains.setdefault(reading, []).append(values)
    for reading, parts in domains.items():
        _warn(reading, merged(parts))


def _warn(reading: Reading, values: Values) -> None:
    low, high = reading.value_range or (0, 65535)
    shown = max(0, min(values.high, high) - max(values.low, low))
    levels = round(shown / (high - low) * 255) + 1
    if levels >= FEW or values.low == values.high:
        return
    least, largest = values.least, values.largest
    if largest - least > 2 * (values.high - values.low):  # outliers
        least, largest = values.low, values.high
    _logger.warning(
        "the 16-bit values are %d..%d (all but 0.2 %% of an image: %d..%d), which %d..%d brings "
        "to %d of 256 gray levels; spread them with --set %s=[%d,%d]",
        *(values.least, values.largest, values.low, values.high, low, high, levels),
        *(reading.key, least, largest),
    )
