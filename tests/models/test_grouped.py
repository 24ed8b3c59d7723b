"""Two domains run as one: the same numbers, fewer calls."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastunit.config import from_dict
from fastunit.models import grouped as grouped_module
from fastunit.models.grouped import GroupedExecution
from fastunit.models.layers import Conv2dBlock
from fastunit.models.unit import UNIT
from fastunit.training.objective import decode_both
from fastunit.training.step import TrainStep

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
        images = [torch.rand(shape, dtype=torch.float64) * 2 - 1 for shape in shapes]
        return TrainStep(UNIT(config).double(), config), images

    return made


def trained(step, images):
    """Return weights, gradients and losses after two steps with noise that is always the same."""
    torch.manual_seed(7)
    with torch.no_grad():
        codes = step.unit.gen_a.code(images[0]), step.unit.gen_b.code(images[1])
    of = {"a": codes[0], "b": codes[1], "ba": codes[1], "ab": codes[0]}
    for _ in range(2):
        noise = {name: torch.randn(code.shape, dtype=code.dtype) for name, code in of.items()}
        losses = step(*images, noise=noise)
    parameters = dict(step.unit.named_parameters())
    found = {f"{name}.grad": p.grad for name, p in parameters.items() if "gen" in name}
    return found | step.unit.state_dict() | losses


def assert_agree(mine, wanted):
    assert mine.keys() == wanted.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9, msg=name)


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
        step, images = make(ALIKE, pair_domains=paired, share={"enc": 0, "dec": 0})
        with Calls() as calls:
            step(*images)
        counts[paired] = calls.count
    assert counts["off"] == 2 * counts["on"]


@pytest.mark.parametrize(("small", "grouped"), [(0, False), (1 << 30, True)])
def test_a_cpu_groups_small_layers_alone(small, grouped, make, monkeypatch):
    monkeypatch.setattr(grouped_module, "SMALL", small)
    counts = {}
    for paired in ("auto", "on" if grouped else "off"):
        step, images = make(ALIKE, pair_domains=paired, share={"enc": 0, "dec": 0})
        with Calls() as calls:
            step(*images)
        counts[paired] = calls.count
    assert len(set(counts.values())) == 1


def test_only_layers_that_differ_run_apart(make):
    counts = {}
    for name in ("alike", "other channels"):
        step, images = make(DOMAINS[name], pair_domains="on", share={"enc": 0, "dec": 0})
        with Calls() as calls, torch.no_grad():
            decode_both(step.unit, *images)
        counts[name] = calls.count
    # An encoder's first layer and a decoder's last see the channels.
    assert counts["other channels"] == counts["alike"] + 2


@pytest.mark.parametrize("paired", ["on", "off"])
def test_shared_layers_run_once_for_both_domains(paired, make, monkeypatch):
    step, images = make(ALIKE, pair_domains=paired, share={"enc": 1, "dec": 1})
    calls, unit, parts, run = Counter(), step.unit, {}, Conv2dBlock.run
    for part in ("enc", "dec"):
        block = getattr(unit.gen_a, part).res_blocks[-1 if part == "enc" else 0].model[0]
        assert block is getattr(unit.gen_b, part).res_blocks[-1 if part == "enc" else 0].model[0]
        parts[block] = part

    def counted(block, weights, x, residual=None):  # a hook would take the block out of the pair
        if block in parts:
            calls.update({parts[block]: len(x)})
        return run(block, weights, x, residual)

    monkeypatch.setattr(Conv2dBlock, "run", counted)
    with torch.no_grad():
        decode_both(unit, *images)
    # The decoders' first block sees two codes of two samples, not these twice.
    assert calls == {"enc": 4, "dec": 4}


@pytest.mark.parametrize("paired", ["on", "off"])
def test_recomputed_activations_change_nothing_and_save_memory(paired, make):
    found, kept = [], []
    for recompute in (True, False):
        settings = {"pair_domains": paired, "checkpoint_activations": recompute}
        found.append(trained(*make(ALIKE, **settings)))
        step, images = make(ALIKE, **settings)
        kept.append(saved_bytes(step.unit, images))
    assert_agree(*found)
    assert kept[0] < 0.6 * kept[1]


def saved_bytes(unit, images):
    weights = {p.untyped_storage().data_ptr() for p in unit.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoded = decode_both(unit, *images)
    assert decoded.x_aa.requires_grad
    return sum(size for _, size in held.values())


def test_what_is_not_asked_for_is_not_recomputed(make):
    step, images = make(ALIKE)
    assert step.unit.execution == GroupedExecution(grouped=None, recompute=False)
    with Calls() as calls:
        losses = step(*images)
    assert calls.count and losses
