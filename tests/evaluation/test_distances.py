"""Distances between sets of features: closed forms, plain loops, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastunit.evaluation import distances


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=random) * scale + shift


@pytest.mark.parametrize(("n", "m", "d"), [(9, 7, 4), (6, 11, 30), (2, 2, 3)])
def test_the_frechet_distance_is_its_formula(n, m, d):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normal(n, d, 0), normal(m, d, 1, 0.5, 2.0)
    covariances = [np.cov(z.numpy(), rowvar=False) for z in (x, y)]
    values, vectors = np.linalg.eigh(covariances[0])
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = linalg.sqrtm(half @ covariances[1] @ half + 1e-14 * np.eye(d)).real
    wanted = np.square((x.mean(0) - y.mean(0)).numpy()).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * root
    )
    assert distances.frechet(x, y) == pytest.approx(wanted, rel=1e-5)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_shifted_sets_is_the_shift():
    x = normal(50, 5, 0)
    assert distances.frechet(x, x + 3) == pytest.approx(5 * 9)


def test_the_kernel_distance_is_its_formula():
    x, y = normal(5, 3, 0), normal(4, 3, 1, 0.5)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [k(a, b) for a in x for b in y]
    wanted = np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)
    assert distances.kernel(x, y) == pytest.approx(wanted)


def test_the_kernel_distance_has_no_bias_and_its_interval_holds_the_truth():
    found = [
        distances.measure_kernel(normal(30, 4, 2 * i), normal(30, 4, 2 * i + 1)) for i in range(60)
    ]
    values = torch.tensor([each.value for each in found])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    held = np.mean([abs(each.value) <= (each.margin or 0) for each in found])
    assert 0.85 <= held <= 1.0


def test_an_interval_narrows_with_more_images_and_is_reproducible():
    few, many = (
        distances.measure_frechet(normal(n, 4, 0), normal(n, 4, 1, 1.0)) for n in (20, 320)
    )
    assert many.margin is not None and few.margin is not None and many.margin < few.margin / 2
    again = distances.measure_frechet(normal(20, 4, 0), normal(20, 4, 1, 1.0))
    assert again == few
    assert distances.measure_frechet(normal(401, 4, 0), normal(9, 4, 1)).margin is None


def test_a_mean_and_its_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    mean = distances.mean(values)
    assert mean.value == 2.5 and mean.margin == pytest.approx(
        1.96 * np.std([1, 2, 3, 4], ddof=1) / 2
    )
    assert distances.mean(values[:1]) == (1.0, None)
