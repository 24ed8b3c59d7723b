"""norm_act's kernels on a GPU, against float64 and next to eager PyTorch's own error."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastunit.kernels import norm_act

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# UNIT's layers, an odd one, an image, and many more pixels than channels.
SHAPES = ((1, 256, 64, 64), (2, 3, 17, 31), (1, 3, 128, 128), (1, 64, 256, 256), (3, 512, 4, 4))
FLOOR = 3e-7  # a few roundings of fp32, in which the kernels compute
NAMES = ("y", "x", "gamma", "beta", "residual")


def eager(x, gamma, beta, residual, norm, act):
    """Return the operation, of PyTorch's own."""
    if norm == "in":
        x = F.instance_norm(x)
    elif norm == "ln":
        std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
        x = (x - mean) / (std + 1e-5)
    x = x * gamma[:, None, None] + beta[:, None, None]
    y = {"relu": F.relu, "selu": F.selu, "tanh": torch.tanh}[act](x) + residual
    return F.pad(y, (1, 1, 1, 1), mode="reflect")


def ours(x, gamma, beta, residual, norm, act, impl="triton"):
    return norm_act(
        x, norm=norm, gamma=gamma, beta=beta, act=act, residual=residual, halo=1,
        pad_mode="reflect", impl=impl,
    )  # fmt: skip


def run(f, dtype, values, dy, *options):
    """Return the result and every gradient, computed in dtype, as float64."""
    leaves = [v.to(dtype).requires_grad_() for v in values]
    y = f(*leaves, *options)
    found = (y, *torch.autograd.grad(y, leaves, dy.to(dtype)))
    return [v.detach().double() for v in found]


def make(shape, dtype, shift=1.0):
    x, residual = (torch.randn(shape, device="cuda") for _ in range(2))
    gamma, beta = torch.randn(2, shape[1], device="cuda")
    n, c, h, w = shape
    dy = torch.randn(n, c, h + 2, w + 2, device="cuda")
    values = [v.to(dtype) for v in (x * 2 + shift, gamma, beta, residual)]
    return values, dy.to(dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("norm", "act"), [("in", "relu"), ("ln", "selu"), ("none", "tanh")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_as_accurate_as_eager_pytorch(dtype, norm, act, shape, memory_format):
    values, dy = make(shape, dtype)
    values[0] = values[0].contiguous(memory_format=memory_format)
    exact = run(eager, torch.float64, values, dy, norm, act)
    mine, theirs = (run(f, dtype, values, dy, norm, act) for f in (ours, eager))
    for name, e, m, t in zip(NAMES, exact, mine, theirs, strict=True):
        # In the norm: where a pre-activation rounds to the other side of 0, dx differs by its all.
        assert (m - e).norm() <= 2 * (t - e).norm() + FLOOR * e.norm(), name


def test_statistics_of_a_mean_of_a_thousand_spreads():
    values, dy = make((1, 64, 64, 64), torch.float32, shift=2000.0)
    exact = run(eager, torch.float64, values, dy, "in", "tanh")
    mine, theirs = (run(f, torch.float32, values, dy, "in", "tanh") for f in (ours, eager))
    for name, e, m, t in zip(NAMES, exact, mine, theirs, strict=True):
        assert (m - e).norm() <= 2 * (t - e).norm() + FLOOR * e.norm(), name


@pytest.mark.parametrize("norm", ["none", "in", "ln"])
def test_the_same_inputs_give_the_same_bits(norm):
    values, dy = make((2, 64, 33, 65), torch.bfloat16)
    first, again = (run(ours, torch.bfloat16, values, dy, norm, "relu") for _ in range(2))
    for name, a, b in zip(NAMES, first, again, strict=True):
        assert torch.equal(a, b), name


def test_a_cuda_graph_replays_forward_and_backward():
    values, dy = make((1, 64, 32, 32), torch.bfloat16)
    leaves = [v.requires_grad_() for v in values]

    def step():
        y = ours(*leaves, "in", "relu")
        return (y, *torch.autograd.grad(y, leaves, dy))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    for name, a, b in zip(NAMES, captured, step(), strict=True):
        assert torch.equal(a, b), name


def test_auto_means_triton_and_compiles_into_one_graph():
    values, dy = make((2, 32, 16, 16), torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True)
    mine = run(compiled, torch.bfloat16, values, dy, "ln", "relu", "auto")
    direct = run(ours, torch.bfloat16, values, dy, "ln", "relu", "triton")
    for name, a, b in zip(NAMES, mine, direct, strict=True):
        assert torch.equal(a, b), name


def test_an_image_that_is_not_channels_last_gives_a_channels_last_result():
    x = torch.randn(2, 16, 8, 8, device="cuda")
    y = norm_act(x, norm="in", act="relu", halo=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    wanted = norm_act(x, norm="in", act="relu", halo=1, impl="aten")
    torch.testing.assert_close(y, wanted)
