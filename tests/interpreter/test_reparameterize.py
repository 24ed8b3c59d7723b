"""The sampling kernels in the interpreter, against formulas and the ATen path."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastunit.kernels import reparameterize
from fastunit.kernels.sampling import launch
from fastunit.kernels.sampling.philox import noise_state
from tests.support.sampling import leaves, results

COUNT = 60_001  # thirty tiles, the last one ragged
SIGMAS = ("unit", "softplus", "exp_half")


def noise_of(seed, counter=0, count=COUNT):
    """Return the noise that the kernel draws: the sample of a code of zeros."""
    state = torch.tensor([seed, counter])
    return reparameterize(torch.zeros(count), state=state, impl="triton")[0]


def formula(noise, sigma, mu, raw=None):
    spread = torch.ones_like(mu)
    if raw is not None:
        spread = (1 + raw.exp()).log() if sigma == "softplus" else (raw / 2).exp()
    return mu + spread * noise, kl_divergence(Normal(mu, spread), Normal(0, 1)).sum() / len(mu)


def assert_near(mine, wanted, tolerance):
    for a, b in zip(mine, wanted, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_sample_divergence_and_gradients_of_drawn_noise(sigma):
    noise, inputs, dz = noise_of(11), leaves(sigma, COUNT), torch.randn(COUNT)
    options = {"sigma": sigma, "kl": "normal", "impl": "triton"}
    mine = results(lambda *x: reparameterize(*x, state=noise_state(11), **options), inputs, dz)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    wanted = results(lambda *x: formula(noise.double(), sigma, *x), exact, dz)
    assert_near(mine, wanted, 3e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_given_noise_in_every_dtype(sigma, dtype):
    inputs = leaves(sigma, 2, 1500, dtype=dtype)
    noise, dz = torch.randn(2, 1500), torch.ones(2, 1500)
    options = {"sigma": sigma, "kl": "normal", "impl": "triton"}
    mine = results(lambda *x: reparameterize(*x, noise=noise, **options), inputs, dz)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    wanted = results(lambda *x: formula(noise.double(), sigma, *x), exact, dz)
    # The interpreter truncates to bf16 where a GPU rounds.
    assert_near(mine, wanted, {torch.bfloat16: 2**-7, torch.float16: 2**-11}.get(dtype, 3e-7))
    assert_near(mine[1:2], wanted[1:2], 3e-7)


def test_the_mean_of_the_squares():
    (mu,) = leaves("unit", 3, 1000)
    kl = reparameterize(mu, impl="triton")[1]
    torch.testing.assert_close(kl, mu.square().mean())
    torch.testing.assert_close(torch.autograd.grad(kl, mu)[0], 2 * mu / 3000)


def test_the_last_program_adds_more_parts_than_a_tile_has_values(monkeypatch):
    (mu,) = leaves("unit", 3, 1000)
    monkeypatch.setattr(launch, "BLOCK", 32)  # 94 programs
    kl = reparameterize(mu, impl="triton")[1]
    torch.testing.assert_close(kl, mu.square().mean())


def test_the_noise_is_unit_normal_and_independent():
    noise = noise_of(3).double()
    assert abs(noise.mean()) < 3 / math.sqrt(COUNT)
    assert abs(noise.var() - 1) < 3 * math.sqrt(2 / COUNT)
    assert abs((noise**4).mean() - 3) < 3 * math.sqrt(96 / COUNT)
    assert ((noise.abs() < 1).double().mean() - 0.682689).abs() < 3 * math.sqrt(0.2166 / COUNT)
    for lag in (1, 2, 3, 4, 1024, 2048):
        assert abs((noise[lag:] * noise[:-lag]).mean()) < 4 / math.sqrt(COUNT), lag


def test_the_noise_is_the_twins():
    for seed, counter in ((0, 0), (-1, 2**32 - 100), (2**63 - 1, 2**62), (2**40 + 1, 2**63 - 600)):
        mine, state = noise_of(seed, counter, 4001), torch.tensor([seed, counter])
        twin = reparameterize(torch.zeros(4001), state=state, impl="aten")[0]
        assert (mine - twin).abs().max() < 2e-6


def test_disjoint_counters_give_other_noise_and_the_same_give_the_same():
    counters = (0, 15_001, 2**32, 2**32 + 15_001)
    draws = torch.stack([noise_of(9, counter) for counter in counters])
    assert draws.unique().numel() > 0.99 * draws.numel()  # some coincide in float32
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 4 / math.sqrt(COUNT)
    assert torch.equal(noise_of(9), draws[0])
    # One counter further on is four values further on: nothing is lost between two draws.
    assert torch.equal(noise_of(9, 1)[:-4], draws[0, 4:])


def test_a_state_advances_by_the_counters_consumed_and_the_bits_repeat():
    inputs, dz = leaves("softplus", COUNT), torch.randn(COUNT)

    def run():
        state, found = noise_state(4), []
        options = {"sigma": "softplus", "kl": "normal", "state": state, "impl": "triton"}
        for counter in (15_001, 30_002):
            found += results(lambda *x: reparameterize(*x, **options), inputs, dz)
            assert state.tolist() == [4, counter]
        return found

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[4])


def test_pytorchs_generator_seeds_what_has_no_state():
    mu = torch.zeros(100)
    torch.manual_seed(3)
    first, second = (reparameterize(mu, impl="triton")[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(reparameterize(mu, impl="triton")[0], first)
    assert not torch.equal(first, second)


VIEWS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, 1:4, ::2, 1:],
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strided_views_give_what_the_twin_gives(view):
    mu, raw = (VIEWS[view](torch.randn(2, 5, 6, 7)) for _ in range(2))
    dz = torch.ones(()).expand_as(mu)

    def run(impl):
        inputs = [value.detach().requires_grad_() for value in (mu, raw.contiguous())]
        options = {"sigma": "exp_half", "kl": "normal", "state": noise_state(2), "impl": impl}
        return results(lambda *x: reparameterize(*x, **options), inputs, dz)

    assert_near(run("triton"), run("aten"), 2e-6)
    assert reparameterize(mu, impl="triton")[0].stride() == torch.empty_like(mu).stride()


def test_a_vanishing_sigma_keeps_a_finite_divergence_and_gradient():
    raw = torch.tensor([[-200.0, -90.0, -79.0, -20.0, 0.0, 90.0, 200.0]])

    def run(impl):
        inputs = [torch.ones_like(raw).requires_grad_(), raw.clone().requires_grad_()]
        options = {"sigma": "softplus", "kl": "normal", "noise": 2 * torch.ones_like(raw)}
        return results(lambda *x: reparameterize(*x, impl=impl, **options), inputs, raw)

    for mine, twin in zip(run("triton"), run("aten"), strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-6, atol=1e-6)
        assert mine.isfinite().all()


@pytest.mark.parametrize("sigma", ["softplus", "exp_half"])
def test_a_nan_stays_a_nan(sigma):
    inputs = [torch.zeros(1, 3).requires_grad_(), torch.tensor([[0, math.nan, 1]]).requires_grad_()]
    options = {"sigma": sigma, "kl": "normal", "impl": "triton"}
    z, kl, _, draw = results(lambda *x: reparameterize(*x, **options), inputs, torch.ones(1, 3))
    assert z.isnan().tolist() == draw.isnan().tolist() == [[False, True, False]]
    assert kl.isnan()


def test_an_empty_batch():
    inputs, state = leaves("softplus", 0, 3, 4), noise_state(0)
    options = {"sigma": "softplus", "kl": "normal", "state": state, "impl": "triton"}
    z, kl = reparameterize(*inputs, **options)
    assert (z.shape, kl.item(), state.tolist()) == ((0, 3, 4), 0, [0, 0])
    for gradient in torch.autograd.grad(z.sum() + kl, inputs):
        assert gradient.shape == z.shape


def test_opcheck():
    mu, raw = leaves("softplus", 3, 5)
    operator = torch.ops.fastunit.reparameterize.default
    torch.library.opcheck(operator, (mu, raw, noise_state(1), "softplus", "normal", "triton"))


def test_float64_has_no_kernel():
    with pytest.raises(ValueError, match="float64"):
        reparameterize(torch.zeros(3).double(), impl="triton")
