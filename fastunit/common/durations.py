"""Durations in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration in words: 40 s, 5 min, 3 h 20 min or 2 days 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"
