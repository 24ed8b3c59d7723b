"""The sampled code and its KL: z = mu + sigma * noise and its divergence, on the ATen path."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fastunit.kernels import reparameterize
from fastunit.kernels.sampling.philox import noise_state, normals_aten
from tests.support.tensors import rand

SIGMAS = ("unit", "softplus", "exp_half")
FORMATS = (torch.contiguous_format, torch.channels_last)


def inputs(sigma, *shape):
    """Return leaves mu, and raw_sigma where sigma is learned."""
    names = ("mu",) if sigma == "unit" else ("mu", "raw_sigma")
    return {name: rand(*shape).requires_grad_() for name in names}


def deviation(sigma, raw_sigma):
    if sigma == "unit":
        return torch.ones((), dtype=torch.float64)
    return (1 + raw_sigma.exp()).log() if sigma == "softplus" else (raw_sigma / 2).exp()


def test_adds_the_noise_and_means_the_squares():
    mu, noise = rand(2, 3, 4, 5), rand(2, 3, 4, 5)
    z, kl = reparameterize(mu, noise=noise)
    assert torch.equal(z, mu + noise)
    assert kl.shape == ()
    torch.testing.assert_close(kl, (mu * mu).sum() / mu.numel())


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (1, 2), (4,)])
def test_values_and_gradients_are_those_of_the_normal_distribution(sigma, shape):
    leaves, noise, dz = inputs(sigma, *shape), rand(*shape), rand(*shape)
    z, kl = reparameterize(**leaves, sigma=sigma, noise=noise, kl="normal")
    spread = deviation(sigma, leaves.get("raw_sigma"))
    wanted = leaves["mu"] + spread * noise
    divergence = kl_divergence(Normal(leaves["mu"], spread), Normal(0, 1)).sum() / shape[0]
    torch.testing.assert_close(z, wanted)
    torch.testing.assert_close(kl, divergence)
    got = torch.autograd.grad((z * dz).sum() + 3 * kl, leaves.values())
    expected = torch.autograd.grad((wanted * dz).sum() + 3 * divergence, leaves.values())
    torch.testing.assert_close(got, expected)


def test_the_digits_networks_get_their_divergence_up_to_constants():
    mu, raw = rand(4, 8, 1, 1), rand(4, 8, 1, 1)
    variance = (1 + raw.exp()).log() ** 2
    _, kl = reparameterize(mu, raw, sigma="softplus", kl="normal")
    torch.testing.assert_close(2 * kl + 8, (mu**2 + variance - variance.log()).sum() / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_vanishing_sigma_keeps_a_finite_divergence_and_gradient(dtype):
    raw = torch.tensor([[-200.0, -90.0, -79.0, -20.0, 90.0, 200.0]], dtype=dtype).requires_grad_()
    mu = torch.zeros_like(raw)
    z, kl = reparameterize(mu, raw, sigma="softplus", noise=mu, kl="normal")
    exact = [-200.0, -90.0, -79.0, -20.0, math.log(90), math.log(200)]
    exact = torch.tensor(exact, dtype=torch.float64)
    divergence = ((2 * exact).exp() - 2 * exact - 1).sum() / 2
    torch.testing.assert_close(kl, divergence.to(dtype))
    slope = torch.tensor([[-1, -1, -1, -1, 90 - 1 / 90, 200 - 1 / 200]], dtype=dtype)
    torch.testing.assert_close(torch.autograd.grad(kl, raw)[0], slope)
    assert torch.equal(z, mu)


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


def test_normals_are_drawn_in_the_order_of_memory():
    mu = torch.zeros(2, 5, 3, 4).to(memory_format=torch.channels_last)
    torch.manual_seed(3)
    z = reparameterize(mu)[0]
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    assert torch.equal(z.permute(0, 2, 3, 1), torch.randn(2, 3, 4, 5))
    torch.manual_seed(3)
    z = reparameterize(mu.contiguous())[0]
    torch.manual_seed(3)
    assert torch.equal(z, torch.randn(2, 5, 3, 4))


def test_a_stream_of_normals_is_philox_through_box_and_muller():
    # The known answer of Philox4x32-10 for counter 0 and key 0, from Salmon et al.'s Random123.
    a, b, c, d = 0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8
    pairs = [(math.sqrt(-2 * math.log((x + 1) / 2**32)), math.tau * y / 2**32)
             for x, y in ((a, b), (c, d))]  # fmt: skip
    wanted = [r * f(angle) for r, angle in pairs for f in (math.cos, math.sin)]
    torch.testing.assert_close(normals_aten(noise_state(0), 4), torch.tensor(wanted))


def test_a_state_gives_its_stream_in_the_order_of_memory():
    state, whole = noise_state(5), normals_aten(noise_state(5), 60 + 36)
    mu = torch.zeros(3, 2, 2, 5).to(memory_format=torch.channels_last)
    first, second = (
        reparameterize(mu, state=state)[0],
        reparameterize(mu[:, :, :, 1:4], state=state)[0],
    )
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first.permute(0, 2, 3, 1).flatten(), whole[:60])
    assert torch.equal(second.permute(0, 2, 3, 1).flatten(), whole[60:])
    assert state.tolist() == [5, 15 + 9]


def test_a_state_advances_by_the_counters_consumed():
    state = noise_state(-7)
    for count, counter in ((1, 1), (4, 2), (5, 4), (0, 4), (400, 104)):
        reparameterize(torch.zeros(count), state=state)
        assert state.tolist() == [-7, counter]


def test_streams_of_other_seeds_and_counters_differ():
    starts = [(1, 0), (2, 0), (1 + 2**32, 0), (-1, 0), (1, 1000), (1, 2**32), (1, 2**62)]
    draws = [normals_aten(torch.tensor(start), 1000) for start in starts]
    assert torch.cat(draws).unique().numel() > 6990  # some of 2^31 values may coincide
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(starts))
    assert correlation.abs().max() < 4.5 / math.sqrt(1000)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("source", ["noise", "state"])
def test_gradcheck(sigma, source):
    noise, options = rand(2, 3), {"sigma": sigma, "kl": "normal"}

    def sample(*leaves):
        given = {"noise": noise} if source == "noise" else {"state": noise_state(1)}
        return reparameterize(*leaves, **options, **given)

    leaves = tuple(inputs(sigma, 2, 3).values())
    assert torch.autograd.gradcheck(sample, leaves)
    with pytest.raises(RuntimeError, match=r"reparameterize.*second derivative"):
        first = torch.autograd.grad(sample(*leaves)[1], leaves, create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()


def test_gradient_of_the_mean_square():
    mu = rand(2, 3).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(reparameterize(mu)[1], mu)[0], 2 * mu / 6)


@pytest.mark.parametrize(("sigma", "kept"), [("unit", [24]), ("softplus", [24, 24, 2])])
def test_backward_keeps_the_arguments_and_the_state(sigma, kept):
    found, leaves = [], inputs(sigma, 2, 3, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.numel()), id):
        reparameterize(**leaves, sigma=sigma, state=noise_state(0), kl="normal")
    assert found == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_sample_keeps_dtype_and_memory_format(dtype, memory_format):
    mu = rand(2, 3, 4, 5).to(dtype).contiguous(memory_format=memory_format)
    z, kl = reparameterize(mu)
    assert z.dtype == kl.dtype == dtype
    assert z.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once_and_sums_in_float32(dtype):
    mu, raw, noise = (rand(4, 1000).to(dtype) for _ in range(3))
    z, kl = reparameterize(mu, raw, sigma="exp_half", noise=noise, kl="normal")
    exact = reparameterize(
        mu.double(), raw.double(), sigma="exp_half", noise=noise.double(), kl="normal"
    )
    assert (z.dtype, kl.dtype) == (dtype, torch.float32)
    assert ((z - exact[0]).abs() <= torch.finfo(dtype).eps / 1.99 * exact[0].abs() + 1e-6).all()
    torch.testing.assert_close(kl.double(), exact[1], rtol=1e-5, atol=0)


VIEWS = {
    "sliced": lambda x: x[:, 1:3, ::2, 1:],
    "transposed": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strided_views_give_what_their_copies_give(view):
    mu, raw, noise, dz = (VIEWS[view](rand(2, 4, 6, 6)) for _ in range(4))

    def run(mu, raw, noise, dz):
        leaves = mu.detach().requires_grad_(), raw.detach().requires_grad_()
        z, kl = reparameterize(*leaves, sigma="softplus", noise=noise, kl="normal")
        return z, *torch.autograd.grad((z, kl), leaves, (dz, torch.ones_like(kl)))

    mine = run(mu, raw, noise.contiguous(), dz)
    copies = (value.clone(memory_format=torch.contiguous_format) for value in (mu, raw, noise, dz))
    for a, b in zip(mine, run(*copies), strict=True):
        assert torch.equal(a, b)
    assert mine[0].stride() == torch.empty_like(mu).stride()


@pytest.mark.parametrize("source", ["noise", "state", "default"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_an_empty_batch_gives_an_empty_sample_and_no_divergence(sigma, source):
    leaves = inputs(sigma, 0, 3, 4, 4)
    given = {"noise": {"noise": rand(0, 3, 4, 4)}, "state": {"state": noise_state(0)}}
    z, kl = reparameterize(**leaves, sigma=sigma, kl="normal", **given.get(source, {}))
    assert (z.shape, kl.item()) == ((0, 3, 4, 4), 0)
    gradients = torch.autograd.grad(z.sum() + kl, leaves.values())
    assert all(gradient.shape == z.shape for gradient in gradients)


def test_autocast_changes_nothing():
    mu, raw = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 3, 4, 4).bfloat16()
    options = {"sigma": "softplus", "noise": torch.randn(2, 3, 4, 4), "kl": "normal"}
    with torch.autocast("cpu", torch.bfloat16):
        mine = reparameterize(mu, raw, **options)
    for a, b in zip(mine, reparameterize(mu, raw, **options), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("source", [torch.randn(2, 3, 4, 5), noise_state(3)], ids=["noise", "pair"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(sigma, source, memory_format):
    raw = None if sigma == "unit" else torch.randn(2, 3, 4, 5, requires_grad=True)
    mu = torch.randn(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    options = (sigma, "normal", "aten")
    torch.library.opcheck(torch.ops.fastunit.reparameterize.default, (mu, raw, source, *options))
    dz, dkl = torch.randn(2, 3, 4, 5), torch.ones(())
    raw = None if raw is None else raw.detach()
    torch.library.opcheck(
        torch.ops.fastunit.reparameterize_backward.default,
        (dz, dkl, mu.detach(), raw, source, *options),
    )
    torch.library.opcheck(torch.ops.fastunit.take_normals.default, (noise_state(3), 10))


def both(mu, raw, noise, state):
    z, kl = reparameterize(mu, noise=noise)
    more, divergence = reparameterize(mu, raw, sigma="softplus", state=state, kl="normal")
    return z, kl, more, divergence, reparameterize(mu, state=state)[0]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph_with_its_gradients(backend):
    torch._dynamo.reset()
    leaves, noise = list(inputs("softplus", 2, 3, 8, 8).values()), rand(2, 3, 8, 8)
    states = noise_state(1), noise_state(1)
    compiled = torch.compile(both, fullgraph=True, backend=backend)
    mine, wanted = compiled(*leaves, noise, states[0]), both(*leaves, noise, states[1])
    torch.testing.assert_close(mine, wanted)
    assert states[0].tolist() == states[1].tolist() == [1, 2 * 96]
    dy = [torch.randn_like(y) for y in wanted]
    torch.testing.assert_close(
        torch.autograd.grad(mine, leaves, dy), torch.autograd.grad(wanted, leaves, dy)
    )


@pytest.mark.parametrize("given", [{}, {"state": noise_state(0)}], ids=["default", "state"])
def test_compiled_draws_differ(given):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def draw(mu):
        return reparameterize(mu, **given)[0], reparameterize(mu, **given)[0]

    mu = rand(2, 3)
    assert len({z.sum().item() for z in (*draw(mu), *draw(mu))}) == 4


MU, LEARNED = torch.zeros(2, 3), {"sigma": "exp_half", "kl": "normal"}
ERRORS = [
    ({"noise": torch.zeros(1, 3)}, "noise of shape (1, 3) must have mu's shape (2, 3)"),
    ({"mu": MU.long()}, "mu must be of a floating dtype, not torch.int64"),
    ({"sigma": "exp"}, "sigma='exp' must be one of unit, softplus, exp_half"),
    ({"kl": "mean"}, "kl='mean' must be one of mean_square, normal"),
    ({"raw_sigma": MU}, "sigma='unit' with one: raw_sigma goes with softplus and exp_half"),
    (LEARNED, "sigma='exp_half' without one: raw_sigma goes with"),
    ({"sigma": "exp_half", "raw_sigma": MU}, "kl='mean_square' leaves out sigma='exp_half'"),
    (LEARNED | {"raw_sigma": MU[:1]}, "raw_sigma of shape (1, 3) must have mu's shape (2, 3)"),
    (LEARNED | {"raw_sigma": MU.double()}, "raw_sigma of torch.float64 must have mu's dtype"),
    ({"noise": MU, "state": noise_state(0)}, "noise and state exclude each other"),
    ({"noise": MU.long()}, "not torch.int64 with requires_grad=False"),
    ({"noise": MU.clone().requires_grad_()}, "not torch.float32 with requires_grad=True"),
    ({"noise": MU.to("meta")}, "noise on meta must be on mu's device, cpu"),
    ({"state": noise_state(0)[:1]}, "not torch.int64 [1] on cpu"),
    ({"state": torch.zeros(2)}, "state must be int64 [2] on cpu"),
    ({"state": noise_state(0, "meta")}, "not torch.int64 [2] on meta"),
    ({"impl": "cuda"}, "impl='cuda' must be one of auto, triton, aten"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reparameterize(**({"mu": MU} | wrong))
