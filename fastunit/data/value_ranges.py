"""Which of the 16-bit values a domain uses, and a warning where 8 bits would keep few of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fastunit.data.image_io import Reading

FEW = 32  # of 255 levels
_logger = logging.getLogger(__name__)


class Values(NamedTuple):
    """The values of a picture: the least, the 0.1 and 99.9 percentiles, the largest."""

    least: int
    low: int
    high: int
    largest: int


def used(values: np.ndarray) -> Values:
    """Return which values a picture has, uint16 of any shape."""
    ends = np.percentile(values, [0, 0.1, 99.9, 100], method="nearest")
    return Values(*(int(end) for end in ends))


def warn_of_few_levels(files: Iterable[tuple[Reading, Values | None]]) -> None:
    """Warn, once for each domain, where the values of all its files fall on few levels of 8 bits.

    Percentiles decide, so that a dead pixel does not hide a narrow range.
    """
    domains: dict[Reading, list[Values]] = {}
    for reading, values in files:
        if values is not None:
            domains.setdefault(reading, []).append(values)
    for reading, parts in domains.items():
        leasts, lows, highs, largests = zip(*parts, strict=True)
        _warn(reading, Values(min(leasts), min(lows), max(highs), max(largests)))


def _warn(reading: Reading, values: Values) -> None:
    low, high = reading.value_range or (0, 65535)
    shown = max(0, min(values.high, high) - max(values.low, low))
    levels = round(shown / (high - low) * 255) + 1
    if levels >= FEW or values.low == values.high:
        return
    least, largest = values.least, values.largest
    if largest - least > 2 * (values.high - values.low):  # a few pixels far from all the others
        least, largest = values.low, values.high
    _logger.warning(
        "the 16-bit values are %d..%d (all but 0.2 %% of a picture: %d..%d), which %d..%d brings "
        "to %d of 256 gray levels; spread them with --set %s=[%d,%d]",
        *(values.least, values.largest, values.low, values.high, low, high, levels),
        *(reading.key, least, largest),
    )
