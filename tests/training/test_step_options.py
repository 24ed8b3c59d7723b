"""Options of the training step that change how, or in how many parts, it computes."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from fastunit.common.errors import ConfigError
from fastunit.config import from_dict
from fastunit.training import compilation
from fastunit.training.objective import Batch, decode_both
from fastunit.training.optim import make_capturable
from fastunit.training.state import TrainState
from tests.support.compare import assert_agree
from tests.support.steps import noise_for
from tests.support.tensors import images

CPU = torch.device("cpu")


@pytest.fixture
def make(make_step):
    return partial(make_step, dtype=torch.float64)


@pytest.fixture
def batch():
    return images(4, 3, 16, 16), images(4, 3, 16, 16)


def state(step):
    weights = dict(step.unit.named_parameters())
    return weights | {f"{name}.grad": p.grad for name, p in weights.items() if "gen" in name}


@pytest.mark.parametrize("paired", ["on", "off"])
@pytest.mark.parametrize("count", [2, 4])
def test_parts_of_a_batch_train_as_the_whole(count, paired, make, batch):
    whole, parts = make(), make(accumulate=count, pair_domains=paired)
    for _ in range(2):
        noise = noise_for(whole.unit, *batch)
        losses = [step(*batch, noise=noise) for step in (whole, parts)]
        assert_agree(losses[1], losses[0])
    assert_agree(state(parts), state(whole))


def test_a_batch_that_has_no_equal_parts_is_refused(make, batch):
    with pytest.raises(ValueError, match="a batch of 4 cannot be divided by accumulate=3"):
        make(accumulate=3)(*batch)


def test_translations_of_a_whole_batch_do_not_go_with_parts(make, batch):
    step = make(accumulate=2)
    for update in (step.dis_update, step.gen_update):
        with pytest.raises(ValueError, match="decoded belongs to a whole batch"):
            update(*batch, decoded=decode_both(step.unit, Batch(*batch)))


def test_recomputing_leaves_batch_norms_statistics_alone(tiny, make, batch):
    dis = {"dis": tiny["dis"] | {"norm": "bn"}}
    plain, recomputed = make(**dis), make(**dis, checkpoint_activations=True)
    noise = noise_for(plain.unit, *batch)
    for step in (plain, recomputed):
        step(*batch, noise=noise)
    assert_agree(recomputed.unit.state_dict(), plain.unit.state_dict())


def test_a_session_reads_the_batches_of_an_iteration_at_once(tiny):
    session = TrainState(from_dict(tiny | {"accumulate": 3, "batch_size": 2}), CPU)
    session.advance(*(torch.rand(6, 3, 16, 16) for _ in range(2)))
    assert session.iteration == 1 and session.positions == {"a": 6, "b": 6}


@pytest.mark.parametrize("kind", ["dis", "gen"])
def test_large_gradients_are_scaled_and_small_ones_left(kind, make, batch):
    def updated(limit):
        step = make(clip_grad_norm=limit)
        getattr(step, f"{kind}_update")(*batch, noise=noise)
        parameters = getattr(step.unit, {"dis": "discriminators", "gen": "generators"}[kind])()
        return [p.grad for p in parameters], [p.detach() for p in parameters]

    noise = noise_for(make().unit, *batch)
    free, weights = updated(0.0)
    for gradients, wanted in ((updated(norm(free) / 3)[0], 1 / 3), (updated(2 * norm(free))[0], 1)):
        for mine, whole in zip(gradients, free, strict=True):
            torch.testing.assert_close(mine, whole * wanted, rtol=1e-6, atol=1e-12)
    assert all(map(torch.equal, updated(2 * norm(free))[1], weights))


def norm(gradients):
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def test_the_rate_known_to_the_host_is_the_optimisers(make, batch):
    step = make(lr=0.008, lr_policy="step", step_size=2, gamma=0.5)
    found = []
    for _ in range(5):
        step(*batch)
        found.append(step.learning_rate)
        assert step.learning_rate == step.gen_opt.param_groups[0]["lr"]
    assert found == pytest.approx([0.008, 0.004, 0.004, 0.002, 0.002])
    again = make(lr=0.008, lr_policy="step", step_size=2, gamma=0.5)
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    assert again.learning_rate == step.learning_rate
    again.reset_settings(4)
    assert again.learning_rate == again.gen_opt.param_groups[0]["lr"] == pytest.approx(0.002)


def test_a_captured_rate_is_saved_as_the_host_knows_it(make, batch):
    step = make(lr=0.1)
    step(*batch)
    for optimizer in (step.dis_opt, step.gen_opt):
        make_capturable(optimizer)
    assert float(step.gen_opt.param_groups[0]["lr"]) != 0.1  # in float32
    again = make(lr=0.1)
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    for optimizer in (again.dis_opt, again.gen_opt):
        assert optimizer.param_groups[0]["lr"] == again.learning_rate == 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pair_domains": "on", "checkpoint_activations": True},
        {"pair_domains": "on", "share_fakes": False, "share": {"enc": 1, "dec": 1}},
    ],
)
def test_a_compiled_step_computes_the_same(changes, make, batch):
    torch.compiler.reset()
    eager, compiled = make(compile="off", **changes), make(compile="on", **changes)
    noise = noise_for(eager.unit, *batch)
    for _ in range(2):
        losses = [step(*batch, noise=noise) for step in (eager, compiled)]
    assert compiled.compiled.is_on and not eager.compiled.is_on
    assert_agree(losses[1], losses[0])
    assert_agree(state(compiled), state(eager))


def breaking(loss, *args):
    """Return a loss, by code that no compiler follows."""
    torch._dynamo.graph_break()
    return loss(*args)


def uncompiled(function, **options):
    """Trace as torch.compile does, without the minutes of its C++ compiler."""
    return COMPILE(function, backend="aot_eager", **options)


COMPILE = torch.compile


@pytest.mark.parametrize(
    ("accumulate", "pair", "dtype", "precision"),
    [
        (1, "on", torch.float32, "bf16"),
        (1, "on", torch.float64, "fp32"),
        (2, "off", torch.float32, "fp32"),
    ],
)
def test_a_compiled_step_is_two_graphs_without_a_break(
    accumulate, pair, dtype, precision, make, batch, monkeypatch
):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(compilation.torch, "compile", uncompiled)
    changes = {"pair_domains": pair, "precision": precision, "accumulate": accumulate}
    step = make(compile="on", **changes)
    step.unit.to(dtype)
    for _ in range(2):
        step(*(x.to(dtype) for x in batch))
    counters = torch._dynamo.utils.counters
    assert step.compiled.is_on
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2


def test_a_step_that_breaks_the_graph_is_not_said_to_be_compiled(make, batch, monkeypatch, caplog):
    torch.compiler.reset()
    monkeypatch.setattr(compilation.torch, "compile", uncompiled)
    eager, step = make(compile="off"), make(compile="on")
    noise = noise_for(eager.unit, *batch)
    for each in (eager, step):
        each.unit.dis_a.dis_terms = partial(breaking, each.unit.dis_a.dis_terms)
    with caplog.at_level(logging.WARNING, "fastunit"):
        losses = [each(*batch, noise=noise) for each in (eager, step)]
    assert_agree(losses[1], losses[0])
    (said,) = (r.getMessage() for r in caplog.records if r.name == "fastunit.training.compilation")
    assert said.startswith("compile off: torch.compile failed in _discriminator_terms:")
    assert not step.compiled.is_on


def test_where_a_backward_pass_does_not_compile_the_step_goes_on(make, batch, monkeypatch, caplog):
    def refuse(*args, **options):
        raise InductorError(RuntimeError("no backward here"), None)

    torch.compiler.reset()
    eager, step = make(compile="off"), make(compile="on")
    noise = noise_for(eager.unit, *batch)
    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx_backward", refuse)
    uncached = torch._functorch.config.patch(enable_autograd_cache=False)
    with uncached, caplog.at_level(logging.WARNING, "fastunit"):
        losses = [each(*batch, noise=noise) for each in (eager, step)]
    assert_agree(losses[1], losses[0])
    assert_agree(state(step), state(eager))
    (said,) = (r.getMessage() for r in caplog.records if r.name.startswith("fastunit"))
    assert "no backward here" in said


def test_where_the_compiler_fails_the_step_goes_on_with_a_word(make, batch, monkeypatch, caplog):
    def broken(function, **options):
        def fail(*args):
            raise BackendCompilerFailed(function, RuntimeError("no compiler here"), None)

        return fail

    monkeypatch.setattr(compilation.torch, "compile", broken)
    eager, step = make(compile="off"), make(compile="on")
    noise = noise_for(eager.unit, *batch)
    with caplog.at_level(logging.WARNING, "fastunit"):
        losses = [each(*batch, noise=noise) for each in (eager, step)]
    assert_agree(losses[1], losses[0])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("compile off: torch.compile failed in _discriminator_terms:")
    assert "no compiler here" in said[0]
    assert not step.compiled.is_on


def test_errors_of_the_step_itself_are_not_taken_for_the_compilers(make, batch, monkeypatch):
    monkeypatch.setattr(compilation.torch, "compile", lambda function, **options: function)
    with pytest.raises(ValueError, match="noise has no"):
        make(compile="on")(*batch, noise={})


def test_compiling_is_for_gpus_unless_asked_for():
    gpu = torch.device("cuda")
    assert [compilation.Compiled("auto", device).is_on for device in (CPU, gpu)] == [False, True]
    assert not compilation.Compiled("off", gpu).is_on


def test_a_graph_needs_a_gpu(make, tiny):
    with pytest.raises(
        ConfigError, match="graphs=on needs an NVIDIA GPU, not cpu; use graphs=auto"
    ):
        make().use_graphs()
    with pytest.raises(ConfigError, match="graphs=on needs"):
        TrainState(from_dict(tiny | {"graphs": "on"}), CPU)
    session = TrainState(from_dict(tiny | {"graphs": "auto"}), CPU)
    assert session.execution_summary() == (
        "precision fp32; CUDA graph off (no GPU); torch.compile off (compile=auto is for GPUs)"
    )


@pytest.mark.parametrize("key", ["graphs", "compile", "pair_domains"])
def test_yaml_reads_on_and_off_as_truth_values(key):
    assert [getattr(from_dict({key: value}), key) for value in (True, False)] == ["on", "off"]
    with pytest.raises(ConfigError, match=f"{key}='yes' must be one of auto, on, off"):
        from_dict({key: "yes"})
