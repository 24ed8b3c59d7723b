"""The sampling kernels on a GPU: accuracy beside eager PyTorch, CUDA graphs, compilation."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import reparameterize
from fastunit.kernels.sampling.philox import noise_state
from tests.support import sampling
from tests.support.sampling import results

pytestmark = pytest.mark.gpu
SIGMAS = ("unit", "softplus", "exp_half")
leaves = partial(sampling.leaves, device="cuda")
SHAPES = {"UNIT's code": (1, 256, 64, 64), "odd": (3, 17, 31), "ragged": (2, 4099)}


def eager(noise, sigma, mu, raw=None):
    """Return what PyTorch's own operations make of the equation, in mu's dtype."""
    if raw is None:
        return mu + noise, mu.square().sum() / 2 / len(mu)
    spread = F.softplus(raw) if sigma == "softplus" else (raw / 2).exp()
    terms = mu.square() + spread.square() - 2 * spread.log() - 1
    return mu + spread * noise, terms.sum() / 2 / len(mu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_accurate_as_eager_pytorch(shape, sigma, dtype):
    inputs = leaves(sigma, *SHAPES[shape], dtype=dtype)
    noise, dz = torch.randn(2, *SHAPES[shape], device="cuda").to(dtype)
    options = {"sigma": sigma, "kl": "normal", "noise": noise}
    exact = [value.detach().double().requires_grad_() for value in inputs]
    wanted = results(lambda *x: eager(noise.double(), sigma, *x), exact, dz)
    theirs = results(lambda *x: eager(noise, sigma, *x), inputs, dz)
    mine = results(lambda *x: reparameterize(*x, impl="triton", **options), inputs, dz)
    for name, e, m, t in zip(("z", "kl", "dmu", "draw"), wanted, mine, theirs, strict=False):
        theirs_off = torch.nan_to_num((t - e).abs().max(), nan=math.inf)  # float16 overflows
        assert (m - e).abs().max() <= 2 * theirs_off + 1e-6 * e.abs().max(), name


@pytest.mark.parametrize("sigma", SIGMAS)
def test_drawn_noise_is_the_twins_forward_and_backward(sigma):
    inputs, dz = leaves(sigma, 3, 20_001), torch.randn(3, 20_001, device="cuda")

    def run(impl):
        state = torch.tensor([5, 2**32 - 1000], device="cuda")
        options = {"sigma": sigma, "kl": "normal", "state": state, "impl": impl}
        return *results(lambda *x: reparameterize(*x, **options), inputs, dz), state

    mine, again, twin = run("triton"), run("triton"), run("aten")
    assert all(torch.equal(a, b) for a, b in zip(mine, again, strict=True))
    assert torch.equal(mine[-1], twin[-1])
    for a, b in zip(mine, twin, strict=True):
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()


def test_the_noise_is_unit_normal_and_independent():
    count = 2**24
    state = noise_state(3, "cuda")
    noise, other = (
        reparameterize(torch.zeros(count, device="cuda"), state=state)[0].double() for _ in range(2)
    )
    assert abs(noise.mean()) < 4 / math.sqrt(count)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / count)
    assert abs((noise * other).mean()) < 4 / math.sqrt(count)
    for lag in (1, 2, 3, 4, 1024, 2048):
        assert abs((noise[lag:] * noise[:-lag]).mean()) < 4 / math.sqrt(count), lag


@pytest.mark.parametrize("source", ["state", "default"])
def test_a_replayed_graph_draws_fresh_noise_and_backward_draws_the_same(source):
    mu, raw = (value.detach() for value in leaves("exp_half", 2, 5000))
    state = noise_state(1, "cuda")
    options = {"state": state} if source == "state" else {}
    options |= {"sigma": "exp_half", "kl": "normal", "impl": "triton"}
    mu.requires_grad_(), raw.requires_grad_()

    def step():
        z, _ = reparameterize(mu, raw, **options)
        return z, torch.autograd.grad(z.sum(), raw)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, draw = step()
    seen = []
    for replay in range(3):
        graph.replay()
        torch.testing.assert_close(draw, (z - mu) / 2)  # sigma * noise / 2
        assert source == "default" or state.tolist() == [1, 2500 * (replay + 2)]
        seen.append(z.clone())
    assert not any(torch.equal(*pair) for pair in itertools.pairwise(seen))


def test_pytorchs_generator_seeds_what_has_no_state():
    mu = torch.zeros(1000, device="cuda")
    torch.manual_seed(3)
    first, second = (reparameterize(mu, impl="triton")[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(reparameterize(mu, impl="triton")[0], first)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    torch._dynamo.reset()
    inputs, dz = leaves("softplus", 2, 3000), torch.randn(2, 3000, device="cuda")
    states = noise_state(1, "cuda"), noise_state(1, "cuda")

    def sample(mu, raw, state):
        return reparameterize(mu, raw, sigma="softplus", kl="normal", state=state)

    compiled = torch.compile(sample, fullgraph=True)
    mine = results(lambda *x: compiled(*x, states[0]), inputs, dz)
    wanted = results(lambda *x: sample(*x, states[1]), inputs, dz)
    assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))
    assert torch.equal(*states)
    draw = torch.compile(lambda mu: (reparameterize(mu)[0], reparameterize(mu)[0]), fullgraph=True)
    assert not torch.equal(*draw(inputs[0]))


def test_a_sample_of_more_than_two_gibi_values():
    count = 2**31 + 4097
    if torch.cuda.get_device_properties(0).total_memory < 12 * count:
        pytest.skip(f"needs {12 * count >> 30} GiB of GPU memory")
    mu = torch.zeros(count, dtype=torch.float16, device="cuda")
    z, kl = reparameterize(mu, state=noise_state(8, "cuda"))
    tail = reparameterize(mu[:4097], state=torch.tensor([8, 2**29], device="cuda"))[0]
    assert torch.equal(z[2**31 :], tail)
    assert kl == 0
