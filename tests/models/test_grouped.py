"""Two domains run as one: the same numbers, fewer calls."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastunit.config import from_dict
from fastunit.models import grouped
from fastunit.models.grouped import BatchPair, GroupedExecution
from fastunit.models.layers import Conv2dBlock
from fastunit.models.unit import UNIT
from fastunit.training.objective import Batch, decode_both
from fastunit.training.step import TrainStep
from tests.support.compare import assert_agree
from tests.support.steps import noise_for
from tests.support.tensors import images

ALIKE = ((2, 3, 16, 16),) * 2
DOMAINS = {
    "alike": ALIKE,
    "other channels": ((2, 1, 16, 16), (2, 3, 16, 16)),
    "other sizes": ((2, 3, 16, 24), (2, 3, 16, 16)),
    "other batch": ((3, 3, 16, 16), (1, 3, 16, 16)),
    "all other": ((1, 3, 20, 16), (2, 1, 16, 24)),
}


class Calls(TorchDispatchMode):
    """Counts the fused blocks that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.fastunit.conv_block.default
        return function(*args, **(kwargs or {}))


@pytest.fixture
def make(tiny):
    """Return a maker of float64 steps whose networks begin alike, and of images."""

    def made(shapes, **changes):
        channels = {"input_dim_a": shapes[0][1], "input_dim_b": shapes[1][1]}
        torch.manual_seed(5)
        config = from_dict(tiny | channels | changes)
        step = TrainStep(UNIT(config).double(), config)
        return step, [images(*shape) for shape in shapes]

    return made


def trained(step, batch):
    """Return weights, gradients and losses after two steps with noise that is always the same."""
    torch.manual_seed(7)
    for _ in range(2):
        losses = step(*batch, noise=noise_for(step.unit, *batch))
    parameters = dict(step.unit.named_parameters())
    found = {f"{name}.grad": p.grad for name, p in parameters.items() if "gen" in name}
    return found | step.unit.state_dict() | losses


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("domains", DOMAINS)
def test_paired_domains_train_as_separate_ones(domains, share, make):
    share = {"share": {"enc": share, "dec": share}}
    found = [
        trained(*make(DOMAINS[domains], pair_domains=paired, **share)) for paired in ("on", "off")
    ]
    assert_agree(*found)


@pytest.mark.parametrize("norm", ["none", "bn", "in", "ln"])
@pytest.mark.parametrize("activ", ["lrelu", "prelu", "selu"])
def test_any_discriminator_can_be_paired(norm, activ, tiny, make):
    dis = {"dis": tiny["dis"] | {"norm": norm, "activ": activ}}
    assert_agree(*(trained(*make(ALIKE, pair_domains=paired, **dis)) for paired in ("on", "off")))


def test_any_generator_can_be_paired(tiny, make):
    gen = tiny["gen"] | {"activ": "prelu", "pad_type": "zero", "n_downsample": 2}
    found = [trained(*make(ALIKE, pair_domains=paired, gen=gen)) for paired in ("on", "off")]
    assert_agree(*found)


def test_alike_domains_take_half_the_calls(make):
    counts = {}
    for paired in ("on", "off"):
        step, batch = make(ALIKE, pair_domains=paired, share={"enc": 0, "dec": 0})
        with Calls() as calls:
            step(*batch)
        counts[paired] = calls.count
    assert counts["off"] == 2 * counts["on"]


def test_a_cpu_groups_nothing_by_itself(make):
    counts = {}
    for paired in ("auto", "off"):
        step, batch = make(ALIKE, pair_domains=paired, share={"enc": 0, "dec": 0})
        with Calls() as calls:
            step(*batch)
        counts[paired] = calls.count
    assert counts["auto"] == counts["off"]


def test_hooks_within_either_network_are_called():
    a, b = (nn.Sequential(Conv2dBlock(4, 4, 3, 1, 1, norm="in")) for _ in range(2))
    x, y = torch.randn(2, 1, 4, 8, 8)
    called = []
    for network in (a, b):
        hook = network[0].conv.register_forward_hook(lambda conv, *_: called.append(conv))
        GroupedExecution(grouped=True).run(a, b, BatchPair(x, y))
        hook.remove()
    assert called == [a[0].conv, b[0].conv]


def test_only_layers_that_differ_run_apart(make):
    counts = {}
    for name in ("alike", "other channels"):
        step, batch = make(DOMAINS[name], pair_domains="on", share={"enc": 0, "dec": 0})
        with Calls() as calls, torch.no_grad():
            decode_both(step.unit, Batch(*batch))
        counts[name] = calls.count
    # An encoder's first layer and a decoder's last see the channels.
    assert counts["other channels"] == counts["alike"] + 2


@pytest.mark.parametrize("paired", ["on", "off"])
def test_shared_layers_run_once_for_both_domains(paired, make, monkeypatch):
    step, batch = make(ALIKE, pair_domains=paired, share={"enc": 1, "dec": 1})
    calls, unit, parts, run = Counter(), step.unit, {}, grouped.apply
    for part in ("enc", "dec"):
        block = getattr(unit.gen_a, part).res_blocks[-1 if part == "enc" else 0].model[0]
        assert block is getattr(unit.gen_b, part).res_blocks[-1 if part == "enc" else 0].model[0]
        parts[block.conv.weight] = part

    def counted(plan, x, w, *others, **options):  # a hook would take it out of the pair
        if w in parts:
            calls.update({parts[w]: len(x)})
        return run(plan, x, w, *others, **options)

    monkeypatch.setattr(grouped, "apply", counted)
    with torch.no_grad():
        decode_both(unit, Batch(*batch))
    # The decoders' first block sees two codes of two samples, not these twice.
    assert calls == {"enc": 4, "dec": 4}


@pytest.mark.parametrize("paired", ["on", "off"])
def test_recomputed_activations_change_nothing_and_save_memory(paired, make):
    found, kept = [], []
    for recompute in (True, False):
        settings = {"pair_domains": paired, "checkpoint_activations": recompute}
        found.append(trained(*make(ALIKE, **settings)))
        step, batch = make(ALIKE, **settings)
        kept.append(saved_bytes(step.unit, batch))
    assert_agree(*found)
    assert kept[0] < 0.6 * kept[1]


def saved_bytes(unit, batch):
    weights = {p.untyped_storage().data_ptr() for p in unit.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoded = decode_both(unit, Batch(*batch))
    assert decoded.x_aa.requires_grad
    return sum(size for _, size in held.values())


def test_what_is_not_asked_for_is_not_recomputed(make):
    step, batch = make(ALIKE)
    assert step.unit.execution == GroupedExecution(grouped=None, recompute=False)
    with Calls() as calls:
        losses = step(*batch)
    assert calls.count and losses
