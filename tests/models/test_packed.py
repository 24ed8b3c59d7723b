"""Filters are laid out once for a whole step, and follow whatever changes the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from fastunit.kernels.common import runtime
from fastunit.kernels.conv import aten, packed, plain
from fastunit.kernels.conv.layouts import Layout
from fastunit.training import compilation
from tests.support.steps import noise_for, weights
from tests.support.tensors import images

COMPILE = torch.compile


@pytest.fixture(autouse=True)
def _operators(monkeypatch):
    """Let small blocks read filters that are laid out, as large ones do."""
    monkeypatch.setattr(plain, "SMALL", 0)


@pytest.fixture
def batch():
    return images(2, 3, 16, 16).float(), images(2, 3, 16, 16).float()


def refuse(*args):
    raise AssertionError("filters are laid out for a single block")


def recorded(step, batch, monkeypatch):
    """Return the names of the kernels of a second step on a GPU, where blocks lay nothing out."""
    with runtime.default_impl("triton"), runtime.recorded_launches(90) as launches:
        step(*batch)
        monkeypatch.setattr(Layout, "make", refuse)
        launches.clear()
        step(*batch)
    return [launch.kernel.fn.__name__ for launch in launches]


@pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter's kernels have no names")
@pytest.mark.parametrize("pair", ["on", "off"])
def test_three_launches_lay_out_all_filters_of_a_step(pair, make_step, batch, monkeypatch):
    names = recorded(make_step(pair_domains=pair), batch, monkeypatch)
    # The generators', the discriminators', and these again after their update.
    assert names.count("pack_kernel") == 3
    # Only the splits of upsampling's combined filters have a launch of their own.
    assert names.count("split_reduce_kernel") == names.count("taps_backward_kernel") > 0


@pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter's kernels have no names")
def test_a_compiled_step_is_handed_its_filters_too(make_step, batch, monkeypatch):
    def uncompiled(function, **options):
        return COMPILE(function, backend="aot_eager", **options)

    torch.compiler.reset()
    monkeypatch.setattr(compilation.torch, "compile", uncompiled)
    step = make_step(compile="on", pair_domains="on")
    assert recorded(step, batch, monkeypatch).count("pack_kernel") == 3
    assert step.compiled.is_on


@pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter would take minutes")
def test_backward_adds_to_one_buffer_of_gradients_a_network(make_step, batch):
    step = make_step(pair_domains="on", lr_policy="constant")
    with runtime.default_impl("triton"), runtime.recorded_launches(90):
        step(*batch)
    (buffer,) = {p.grad.untyped_storage().data_ptr() for p in step.unit.generators()}
    assert buffer == step._gen_gradients.buffer.untyped_storage().data_ptr()
    assert all(p.grad is None for p in step.unit.discriminators())
    biases = [m.conv.bias for m in step.unit.gen_a.enc.modules() if hasattr(m, "conv")]
    assert biases and not any(bias.grad.any() for bias in biases)  # before an instance norm
    step(*batch)  # on a CPU autograd has them
    assert len({p.grad.untyped_storage().data_ptr() for p in step.unit.generators()}) > 1


def changed_by_load(unit, state):
    unit.load_state_dict(state)


def changed_unnoticed(unit, state):
    for name, value in unit.state_dict().items():
        value.data.copy_(state[name])  # leaves the version alone


def replaced(unit, state):
    for name, parameter in unit.named_parameters():
        parameter.data = state[name].clone()


@pytest.mark.parametrize("change", [changed_by_load, changed_unnoticed, replaced])
@pytest.mark.parametrize("changes", [{}, {"pair_domains": "on", "precision": "bf16"}])
def test_weights_changed_behind_the_steps_back_are_seen(change, changes, make_step, batch):
    step, fresh = make_step(**changes), make_step(**changes)
    state = copy.deepcopy(fresh.unit.state_dict())
    noise = noise_for(fresh.unit, *batch)
    step(*batch, noise=noise)
    change(step.unit, state)
    mine, wanted = (each(*batch, noise=noise) for each in (step, fresh))
    for name in wanted.keys() - {"adversarial_a", "adversarial_b", "generator_total"}:
        assert torch.equal(mine[name], wanted[name]), name  # those follow Adam's first update


def test_filters_that_were_not_written_again_would_be_seen(make_step, batch, monkeypatch):
    step, fresh = make_step(), make_step()
    state = copy.deepcopy(fresh.unit.state_dict())
    for value in state.values():
        value.mul_(1.5)
    noise = noise_for(fresh.unit, *batch)
    for each in (step, fresh):
        each._write(each._gen_filters, each._gen_gradients)
        changed_unnoticed(each.unit, state)
    monkeypatch.setattr(step, "_write", lambda *of_network: None)
    losses = [each(*batch, noise=noise) for each in (step, fresh)]
    assert not torch.equal(losses[0]["reconstruction_a"], losses[1]["reconstruction_a"])


def test_nothing_is_kept_after_a_step_or_an_exception(make_step, batch):
    step = make_step()
    step(*batch)
    assert not step._execution.filters
    with pytest.raises(ValueError, match="noise has no"):
        step(*batch, noise={})
    assert not step._execution.filters and not step._keeps_filters


def test_phases_are_made_once_a_step(make_step, batch, monkeypatch):
    calls, make = [], packed.phase_filters
    monkeypatch.setattr(packed, "phase_filters", lambda *args: calls.append(1) or make(*args))
    monkeypatch.setattr(aten.phases, "phase_filters", refuse)
    step = make_step()
    step(*batch)
    upsampling = [m for m in step.unit.modules() if type(m).__name__ == "UpsampleConv2dBlock"]
    assert len(calls) == len(upsampling)


def test_hooked_and_replaced_layers_lay_their_own_out(make_step, batch):
    step, plain = make_step(), make_step()
    step.unit.load_state_dict(plain.unit.state_dict())
    step.unit.gen_a.dec.model[2].register_forward_hook(lambda *_: None)
    noise = noise_for(plain.unit, *batch)
    for _ in range(2):
        losses = [each(*batch, noise=noise) for each in (step, plain)]
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name])
    assert weights(step).keys() == weights(plain).keys()
