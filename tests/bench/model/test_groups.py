"""The groups of kernels, and how many kernels torch.compile makes of a run of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench.model import groups
from bench.model.aten import Part, Work
from bench.model.fusion import fused
from bench.model.gpu import H100
from bench.model.groups import FUSABLE, WEIGHTS, group_of
from bench.model.trace import Event, Trace


def event(name, place, shapes=(), variant=None):
    writes = tuple(Part(i, shape, 4) for i, shape in enumerate(shapes))
    return Event(Work(name, (), writes), place, variant)


@pytest.mark.parametrize(
    ("name", "place", "group"),
    [
        ("conv_gemm_kernel", "kernels/conv/gemm.py:launch", "products"),
        ("backward_merge_kernel", "kernels/norm_act/launch.py:_merge_sums", "merges"),
        ("copy_", "kernels/conv/phases.py:border_correction", "reflect ring of the 5x5 blocks"),
        ("copy_", "kernels/conv/gemm.py:_laid", WEIGHTS),
        ("fill_", "kernels/common/frame.py:empty", "fills, zero bias gradients, sums"),
        ("convolution dgrad", "fastunit/training/step.py:descend",
         "1x1 heads of the discriminators"),
        ("_fused_adam_", "fastunit/training/step.py:descend", "Adam, average"),
        ("add", "fastunit/training/step.py:descend", FUSABLE),
    ],
)  # fmt: skip
def test_kernels_belong_to_their_group(name, place, group):
    assert group_of(event(name, place)) == group


def test_sums_of_gradients_of_weights_belong_to_the_weights():
    add = event("add", "fastunit/training/step.py:descend", [(2, 64, 3, 7, 7)])
    weights = {(2, 3, 7, 7, 64)}
    assert group_of(add, weights) == WEIGHTS and group_of(add) == FUSABLE


def test_what_the_table_does_not_know_is_a_group_of_its_own():
    variant = SimpleNamespace()
    new = event("new_kernel", "kernels/new.py:launch", variant=variant)
    assert group_of(new) == "new_kernel"
    assert group_of(event("add", "kernels/new.py:f")) == "kernels/new.py"
    assert not groups.is_fusable(new, "new_kernel")


def fuse(program, *tensors):
    """Return names and bytes of the kernels that a program's pointwise calls and sums become."""
    with Trace(H100) as trace:
        kept = program(*tensors)
        torch.mm(torch.empty(2, 2), torch.empty(2, 2))
        for tensor in kept:
            tensor.clone()
    others = {"mm", "clone"}  # the first ends the run, the others read its results
    found = fused(trace.events, lambda each: each.work.name not in others)
    return [
        (e.work.name, *(sum(p.bytes for p in parts) for parts in (e.work.reads, e.work.writes)))
        for e in found
        if e.work.name not in others
    ]


x, y = torch.zeros(64, 1024), torch.zeros(64, 1024)  # 256 KiB each
SIZE = x.nbytes


def test_a_chain_becomes_one_kernel():
    assert fuse(lambda x, y: [((x + y) * 2).relu()], x, y) == [("fused", 2 * SIZE, SIZE)]


def test_a_loss_becomes_one_reduction():
    assert fuse(lambda x, y: [(x - y).abs().mean()], x, y) == [("fused reduction", 2 * SIZE, 4)]


def test_a_norm_reads_its_input_twice():
    found = fuse(lambda x: [F.relu((x - x.mean(1, True)) / x.std(1, keepdim=True))], x)
    assert [name for name, *_ in found] == ["fused reduction", "fused"]
    assert found[0][1:] == (SIZE, 256)
    # With the statistics, of 64 rows each.
    assert found[1][1] == SIZE + 2 * 256 and found[1][2] == SIZE


def test_results_without_a_common_input_are_kernels_of_their_own():
    found = fuse(lambda x, y: [x.bfloat16() * 2, y.bfloat16() * 2], x, y)
    assert found == [("fused", SIZE, SIZE // 2)] * 2


def test_what_nobody_reads_is_not_written():
    assert fuse(lambda x, y: [x + 1 + (y + 1)], x, y) == [("fused", 2 * SIZE, SIZE)]


def test_another_kernel_ends_a_run():
    def program(x, y):
        z = x + 1
        torch.mm(z, y.t())
        return [z * 2 + 1]

    assert [name for name, *_ in fuse(program, x, y)] == ["add", "fused"]
