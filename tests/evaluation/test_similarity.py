"""Measures of a pair of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastunit.evaluation import similarity


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_l1_and_psnr_are_their_formulas_for_each_image():
    x, y = images(0, 3, 3, 9, 7), images(1, 3, 3, 9, 7)
    levels = [(z.double().numpy() + 1) / 2 for z in (x, y)]
    error = np.square(levels[0] - levels[1]).mean((1, 2, 3))
    np.testing.assert_allclose(similarity.psnr(x, y), -10 * np.log10(error))
    np.testing.assert_allclose(
        similarity.l1(x, y), 2 * np.abs(levels[0] - levels[1]).mean((1, 2, 3)), rtol=1e-6
    )
    assert similarity.psnr(x, x).tolist() == [100, 100, 100]


def test_ssim_of_one_window_is_its_formula():
    x, y = images(2, 1, 1, 11, 11), images(3, 1, 1, 11, 11)
    places = np.arange(11) - 5
    line = np.exp(-(places**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    a, b = ((z[0, 0].double().numpy() + 1) / 2 for z in (x, y))
    ma, mb = (weights * a).sum(), (weights * b).sum()
    va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
    cov = (weights * (a - ma) * (b - mb)).sum()
    wanted = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert similarity.ssim(x, y).item() == pytest.approx(wanted)


@pytest.mark.parametrize("size", [(30, 20), (11, 11), (4, 50), (1, 1)])
def test_ssim_is_one_for_equal_images_and_less_for_noisy_ones(size):
    x = images(4, 2, 3, *size)
    assert similarity.ssim(x, x).tolist() == pytest.approx([1, 1])
    little, much = (similarity.ssim(x, x + s * images(5, 2, 3, *size)) for s in (0.1, 0.5))
    assert (much < little).all() and (little < 1).all()
