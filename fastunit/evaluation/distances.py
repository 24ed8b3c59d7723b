"""Distances between two sets of features, with bootstrap intervals.

Both are small where the sets are alike. The Fréchet distance is biased: it grows as the sets get
smaller, so only distances between sets of equal sizes can be compared. The kernel distance is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLED = 200  # bootstrap samples
MOST_RESAMPLED = 400  # images of a set up to which the Fréchet distance has an interval


class Measured(NamedTuple):
    """A value and half the width of its 95 % interval; None where there is none."""

    value: float
    margin: float | None = None


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance of two sets' normal distributions (Heusel et al. 2017).

    ||m_x - m_y||^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), with unbiased covariances C. The trace of
    the root is the sum of the singular values of X Y^T, where the rows of X are the centred
    features of x over sqrt(N - 1): an N x M matrix, however many features there are.

    Args:
        x, y: features [N, D] and [M, D], float64; N and M at least 2.
    """
    centred = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    root = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    spread = sum(z.square().sum() for z in centred)
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * root)


def kernel(x: Tensor, y: Tensor) -> float:
    """Return the kernel distance, the unbiased squared MMD with k = (x.y / D + 1)^3.

    The measure of KID (Binkowski et al. 2018), over all images at once; x and y as in `frechet`.
    """
    ones = [torch.ones(len(z), dtype=x.dtype) for z in (x, y)]
    return _weighted(_kernels(x, y), ones[0], ones[1])


def measure_frechet(x: Tensor, y: Tensor, seed: int = 0) -> Measured:
    """Return `frechet` with an interval, which large sets do not have."""
    if max(len(x), len(y)) > MOST_RESAMPLED:
        return Measured(frechet(x, y))

    def again(rows: Tensor, others: Tensor) -> float:
        return frechet(x[rows], y[others])

    return Measured(frechet(x, y), _margin(again, len(x), len(y), seed, RESAMPLED // 4))


def measure_kernel(x: Tensor, y: Tensor, seed: int = 0) -> Measured:
    """Return `kernel` with an interval."""
    kernels = _kernels(x, y)

    def again(rows: Tensor, others: Tensor) -> float:
        counts = [
            torch.bincount(drawn, minlength=len(z)).to(x.dtype)
            for drawn, z in ((rows, x), (others, y))
        ]
        return _weighted(kernels, counts[0], counts[1])

    return Measured(kernel(x, y), _margin(again, len(x), len(y), seed, RESAMPLED))


def mean(values: Tensor) -> Measured:
    """Return the mean of values [N] with the interval that its standard error gives."""
    margin = None if len(values) < 2 else 1.96 * float(values.std()) / math.sqrt(len(values))
    return Measured(float(values.mean()), margin)


def _margin(
    again: Callable[[Tensor, Tensor], float], n: int, m: int, seed: int, count: int
) -> float:
    """Return 1.96 standard deviations of a measure over sets drawn with replacement."""
    random = torch.Generator().manual_seed(seed)
    values = [
        again(torch.randint(n, (n,), generator=random), torch.randint(m, (m,), generator=random))
        for _ in range(count)
    ]
    return 1.96 * float(torch.tensor(values, dtype=torch.float64).std())


def _kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return k within x, within y and between them; an image with itself counts nothing."""
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return xx.fill_diagonal_(0), yy.fill_diagonal_(0), xy


def _weighted(kernels: tuple[Tensor, Tensor, Tensor], v: Tensor, w: Tensor) -> float:
    """Return the squared MMD of sets that contain the images v and w times."""
    xx, yy, xy = kernels
    within = ((c @ k @ c) / (c.sum().square() - c.square().sum()) for k, c in ((xx, v), (yy, w)))
    return float(sum(within) - 2 * (v @ xy @ w) / (v.sum() * w.sum()))
