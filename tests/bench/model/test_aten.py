"""Which kernels ATen calls launch: counts and bytes of tiny programs, and that nothing computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.optim import Adam

from bench.model.aten import multi_tensor_launches
from bench.model.gpu import H100
from bench.model.trace import Trace


def traced(program, *tensors):
    with Trace(H100) as trace:
        program(*tensors)
    return trace


def works(program, *tensors):
    return [event.work for event in traced(program, *tensors).events]


def moved(work):
    return tuple(sum(part.bytes for part in parts) for parts in (work.reads, work.writes))


x = torch.zeros(2, 8, 4, 4)  # 1 KiB
BYTES = 1024


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x.view(2, -1).t().unsqueeze(0)[..., 1:].expand(3, -1, -1),
        lambda x: (torch.empty_like(x), x.new_empty(3), torch.empty(5)),
        lambda x: (x.detach(), x.shape, x.stride(), x.is_contiguous(), x.contiguous()),
        lambda x: x.to(torch.float32),
        lambda x: x[:0] + 1,
        lambda x: x.split([3, 5], 1),
        lambda x: torch.promote_types(x.dtype, torch.bfloat16),
    ],
)
def test_what_launches_nothing(program):
    assert works(program, x) == []


@pytest.mark.parametrize(
    ("program", "read", "written"),
    [
        (lambda x: x + x, 2 * BYTES, BYTES),
        (lambda x: x.add_(1), BYTES, BYTES),
        (lambda x: x.to(torch.bfloat16), BYTES, BYTES // 2),
        (lambda x: x.fill_(1), 0, BYTES),
        (lambda x: torch.zeros_like(x), 0, BYTES),
        (lambda x: torch.zeros(4), 0, 16),
        (lambda x: x.copy_(x.clone()[0]), None, None),
        (lambda x: x.sum(), BYTES, 4),
        (lambda x: torch.cat([x, x]), 2 * BYTES, 2 * BYTES),
        (lambda x: torch.stack([x, x], 3), 2 * BYTES, 2 * BYTES),
        (lambda x: x.permute(0, 2, 3, 1).contiguous(), BYTES, BYTES),
        (lambda x: x[:, :, :1].expand(2, 8, 4, 4) * 2, BYTES // 4, BYTES),
        (lambda x: torch.randn(8), 0, 32),
    ],
)
def test_what_launches_one_kernel_for_its_bytes(program, read, written):
    *_, last = found = works(program, x.clone())
    if read is None:  # a clone, then a copy of half as much as it writes
        assert [moved(work) for work in found] == [(BYTES, BYTES), (BYTES // 2, BYTES)]
    else:
        assert len(found) == 1 and moved(last) == (read, written)


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (lambda x: F.mse_loss(x, x), ["mse_loss: pointwise", "mse_loss: mean"]),
        (lambda x: F.pad(x, (1, 1)), ["constant_pad_nd: fill", "constant_pad_nd: copy"]),
    ],
)
def test_calls_that_are_several_kernels(program, names):
    assert [work.name for work in works(program, x)] == names


def test_a_convolution_is_one_kernel_forward_and_two_backward():
    def program(x, w, b):
        F.conv2d(x, w, b).sum().backward()

    w, b = torch.zeros(6, 8, 3, 3, requires_grad=True), torch.zeros(6, requires_grad=True)
    found = works(program, x.clone().requires_grad_(), w, b)
    products = [work for work in found if work.gemm]
    assert [work.name for work in products] == [
        "convolution", "convolution dgrad", "convolution wgrad",
    ]  # fmt: skip
    # [2, 6, 2, 2] of 8 x 3 x 3 products each.
    assert {work.flops for work in products} == {2 * 2 * 6 * 4 * 8 * 9}
    assert products[0].gemm == (2 * 4, 6, 8 * 9)
    assert products[2].gemm == (8 * 9, 6, 2 * 4)
    frozen = works(program, x.clone(), w, b)
    assert [w.name for w in frozen if w.gemm] == ["convolution", "convolution wgrad"]


def test_a_product_has_its_flops():
    (work,) = works(lambda: torch.bmm(torch.zeros(3, 4, 5), torch.zeros(3, 5, 7)))[-1:]
    assert work.name == "bmm" and work.flops == 2 * 3 * 4 * 5 * 7


def test_fused_adam_is_one_kernel_for_each_list_of_chunks():
    weights = [torch.zeros(70_000, requires_grad=True) for _ in range(3)]
    optimizer = Adam(weights, fused=True)

    def program():
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()

    with Trace(H100) as trace:
        program()  # allocates the moments
        trace.clear()
        program()
    found = [event.work for event in trace.events if "zeros" not in event.work.name]
    assert [work.name for work in found] == ["_foreach_add_", "_fused_adam_"]
    read, written = moved(found[1])
    # Four tensors read and three written; the steps are a few bytes.
    assert read == pytest.approx(4 * 3 * 280_000, rel=1e-4)
    assert written == pytest.approx(3 * 3 * 280_000, rel=1e-4)


@pytest.mark.parametrize(
    ("sizes", "depth", "launches"),
    [
        ([1] * 36, 4, 1),  # 36 tensors of four lists fill a launch
        ([1] * 37, 4, 2),
        ([1] * 110, 1, 1),
        ([65536 * 320], 4, 1),  # 320 chunks fill one
        ([65536 * 320 + 1], 4, 2),
        ([0, 0], 4, 0),
        ([], 4, 0),
    ],
)
def test_multi_tensor_kernels_take_limited_tensors_and_chunks(sizes, depth, launches):
    assert multi_tensor_launches(sizes, depth, H100) == launches


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0, 0, 0, 0]),
        lambda x: bool((x == 0).all()),
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
    ],
)
def test_calls_that_make_the_host_wait_are_seen(program):
    assert sum(traced(program, x).waits.values()) == 1


def test_nothing_is_computed():
    with Trace(H100):
        big = torch.empty(1 << 20, 1 << 12)  # 16 GiB that nobody touches
        assert (big @ big.t()[:, :8]).shape == (1 << 20, 8)
        y = torch.full((4,), 7.0)
        z = x.add_(1)
    assert z is x and x.max() == 0
    assert y.shape == (4,)


def test_autograd_and_autocast_work_as_ever():
    def program(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            y = F.conv2d(x, w)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()

    w = torch.zeros(6, 8, 3, 3, requires_grad=True)
    found = works(program, x, w)
    assert w.grad is not None and w.grad.dtype == torch.float32
    assert sum(work.name == "_to_copy" for work in found) == 5
