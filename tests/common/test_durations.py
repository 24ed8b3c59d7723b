"""Durations in words."""

import pytest

from fastunit.common.durations import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3000, "50 min"),
        (3600, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 days 4 h"),
    ],
)
def test_a_duration_in_words(seconds, words):
    assert duration(seconds) == words
