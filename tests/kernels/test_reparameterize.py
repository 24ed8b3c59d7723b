"""The sampled code and its KL: z = mu + noise and mean(mu^2)."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import reparameterize


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_adds_the_noise_and_means_the_squares():
    mu, noise = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    z, kl = reparameterize(mu, noise=noise)
    assert torch.equal(z, mu + noise)
    assert kl.shape == ()
    torch.testing.assert_close(kl, (mu * mu).sum() / mu.numel())


def test_draws_fresh_unit_normals():
    mu = torch.full((200, 200), 5.0)
    torch.manual_seed(3)
    first, second = reparameterize(mu)[0], reparameterize(mu)[0]
    torch.manual_seed(3)
    assert torch.equal(reparameterize(mu)[0], first)
    assert not torch.equal(first, second)
    noise = first - mu
    assert noise.mean().abs() < 0.02  # four standard errors of 40,000 draws
    assert abs(noise.var() - 1) < 0.03
    assert ((noise.abs() < 1).double().mean() - 0.6827).abs() < 0.01
    assert abs((noise * (second - mu)).mean()) < 0.02


def test_gradients_of_the_sample_and_of_the_kl():
    mu, noise = rand(2, 3).requires_grad_(), rand(2, 3)
    assert torch.autograd.gradcheck(lambda m: reparameterize(m, noise=noise), (mu,))
    torch.testing.assert_close(torch.autograd.grad(reparameterize(mu)[1], mu)[0], 2 * mu / 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_sample_keeps_dtype_and_memory_format(dtype, memory_format):
    mu = rand(2, 3, 4, 5).to(dtype).contiguous(memory_format=memory_format)
    z, kl = reparameterize(mu)
    assert z.dtype == kl.dtype == dtype
    assert z.is_contiguous(memory_format=memory_format)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise of shape \(1, 3\) must have mu's shape \(2, 3\)"):
        reparameterize(torch.zeros(2, 3), noise=torch.zeros(1, 3))
