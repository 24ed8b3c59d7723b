"""Items at even distances."""

import pytest

from fastunit.common.spread import spread


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_both_ends_and_even_distances(count, wanted):
    assert spread(range(10), count) == wanted


def test_nothing_to_spread():
    assert spread([], 3) == []
