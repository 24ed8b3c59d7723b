"""A part of a sequence, spread over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items at even distances, the first and the last among them."""
    last = len(items) - 1
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * last / (count - 1))] for i in range(count)]
