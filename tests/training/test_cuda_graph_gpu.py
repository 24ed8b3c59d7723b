"""The training step as a CUDA graph: the same numbers, fresh noise, living schedules."""

from __future__ import annotations

import logging

import pytest
import torch

from fastunit.config import from_dict
from fastunit.kernels.common import branches, dependent, runtime
from fastunit.models.unit import networks
from fastunit.training.cuda_graph import WARM_UP, GraphedStep
from fastunit.training.objective import Batch
from fastunit.training.state import TrainState
from fastunit.training.step import TrainStep
from tests.support.compare import assert_same
from tests.support.steps import weights, without_networks

pytestmark = pytest.mark.gpu

STEPS = WARM_UP + 4
CUDA = torch.device("cuda")
BLOCKS = {"n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_gen_res_blk": 1, "n_gen_front_blk": 2}
PAPER = {
    "network": "paper",
    "paper": {
        "gen": {"ch": 8, **BLOCKS},
        "dis": {"name": "COCOSharedDis", "ch": 8, "n_front_layer": 2},
    },
}


@pytest.fixture
def batches():
    shape = STEPS, 2, 2, 3, 16, 16
    return torch.rand(shape, device=CUDA).mul(2).sub(1).unbind()


@pytest.fixture
def make(tiny):
    """Return a maker of training steps on the GPU whose networks begin alike."""

    def made(**changes) -> TrainStep:
        own = without_networks(tiny) if "paper" in changes else tiny
        config = from_dict({"graphs": "off", "compile": "off"} | own | changes)
        torch.manual_seed(11)
        return TrainStep(networks(config).to(CUDA, memory_format=torch.channels_last), config)

    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "fp32"},
        {"precision": "tf32", "share_fakes": False},
        {"clip_grad_norm": 0.1, "lr_policy": "step", "step_size": 2},
        {"accumulate": 2},
        {"identity_w": 2.0, "lr_policy": "linear", "max_iter": STEPS + 1},
        {"checkpoint_activations": True},
        {"pair_domains": "off"},
        {"latent": "learned"},
        PAPER,
        PAPER | {"pair_domains": "off", "precision": "fp32", "checkpoint_activations": True},
    ],
)
def test_replays_are_the_step(changes, make, batches):
    eager, graphed = make(**changes), make(**changes)
    with torch.no_grad():
        code = eager.unit.gen_a.code(batches[0][0])
    noise = {name: torch.randn_like(code) for name in ("a", "b", "ba", "ab")}
    # With a rate on the device and captured updates in both, so that only replaying differs.
    for step in (eager, graphed):
        step.use_graphs(required=True)
    replayed = GraphedStep(lambda x_a, x_b: graphed.updates(Batch(x_a, x_b, noise)), required=True)
    for x_a, x_b in batches:
        for step in (eager, graphed):
            step.update_learning_rate()
        losses = eager.updates(Batch(x_a, x_b, noise)), replayed(x_a, x_b)
        assert_same(*losses)
    assert replayed._graph is not None
    assert_same(weights(graphed), weights(eager))


SWITCHES = {"branches": (branches,), "pdl": (dependent,), "both": (branches, dependent)}


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"precision": "fp32"}, {"accumulate": 2}, {"checkpoint_activations": True}, PAPER],
)
def test_what_is_off_by_default_changes_no_bits(
    switches, changes, make, tiny, batches, monkeypatch
):
    modules = SWITCHES[switches]
    if dependent in modules and runtime.arch(torch.device("cuda", 0)) < dependent.OLDEST:
        pytest.skip("needs compute capability 9.0")
    if "paper" not in changes:
        changes = changes | {"dis": tiny["dis"] | {"num_scales": 3}, "pair_domains": "on"}
    plain, switched = make(**changes), make(**changes)
    with torch.no_grad():
        code = plain.unit.gen_a.code(batches[0][0])
    noise = {name: torch.randn_like(code) for name in ("a", "b", "ba", "ab")}
    found = []
    for step, is_on in ((plain, False), (switched, True)):
        for module in modules:
            monkeypatch.setattr(module, "ON", is_on)
        step.use_graphs(required=True)
        replayed = GraphedStep(lambda *x, of=step: of.updates(Batch(*x, noise)), required=True)
        found.append([replayed(*images) for images in batches])
        assert replayed._graph is not None
    for losses in zip(*found, strict=True):
        assert_same(*losses)
    assert_same(weights(switched), weights(plain))
    if branches in modules:
        assert branches._lanes  # it has forked


def test_every_replay_draws_fresh_noise(make, batches):
    step = make(lr=0.0, weight_decay=0.0)
    step.use_graphs(required=True)
    found = [float(step(*batches[0])["reconstruction_a"]) for _ in range(STEPS)]
    assert len(set(found)) == STEPS


def test_losses_of_earlier_steps_stay(make, batches):
    step = make()
    step.use_graphs(required=True)
    kept = [step(*images)["generator_total"] for images in batches]
    assert len({float(loss) for loss in kept}) == STEPS


def test_the_schedule_acts_on_replays(make, batches):
    step = make(lr=0.01, lr_policy="step", step_size=WARM_UP + 2, gamma=0.0)
    step.use_graphs(required=True)
    for images in batches[: WARM_UP + 1]:
        step(*images)
    before = weights(step)
    step(*batches[-1])  # at a rate of 0
    after = weights(step)
    assert step.learning_rate == 0
    assert_same(after, before)


def test_the_average_ramps_on_replays(tiny, batches):
    session = TrainState(from_dict(tiny | {"ema_decay": 0.9, "graphs": "on", "lr": 0.01}), CUDA)
    wanted = {n: p.double() for n, p in session.generator_pair.named_parameters()}
    trained = dict(session.unit.generator_pair().named_parameters())
    for n, images in enumerate(batches):
        session.advance(*images)
        decay = (1 + n) / (10 + n)
        wanted = {k: decay * v + (1 - decay) * trained[k].double() for k, v in wanted.items()}
    assert session.step._graphed._graph is not None
    for name, value in session.generator_pair.named_parameters():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-6)
    assert session.state()["ema_updates"] == STEPS


def test_images_of_another_shape_run_as_they_are(make, batches):
    step = make()
    step.use_graphs(required=True)
    for images in batches:
        step(*images)
    losses = step(*(x[:1] for x in batches[0]))
    assert all(loss.isfinite() for loss in losses.values())


def test_what_cannot_be_captured_runs_uncaptured_and_says_why(make, batches, caplog):
    def step(x_a, x_b):
        return {"mean": x_a.mean() + float(x_b.mean())}  # asks the device

    graphed = GraphedStep(step, required=False)
    with caplog.at_level(logging.WARNING, "fastunit"):
        found = [graphed(*images)["mean"] for images in batches]
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and said[0].startswith("graphs off: the step cannot be captured: ")
    for images, mean in zip(batches, found, strict=True):
        torch.testing.assert_close(mean, images[0].mean() + images[1].mean())


def test_a_resumed_session_goes_on_as_it_would_have(tiny, batches):
    settings = from_dict(tiny | {"ema_decay": 0.9, "graphs": "on", "lr_policy": "step"})
    first = TrainState(settings, CUDA)
    for x_a, x_b in batches:
        first.advance(x_a, x_b)
    state = first.state()
    second = TrainState(settings, CUDA)
    second.restore(state, "state")
    for session in (first, second):
        for x_a, x_b in batches[:2]:
            session.advance(x_a, x_b)
    assert first.step.learning_rate == second.step.learning_rate
    for name, value in first.unit.state_dict().items():
        # One replays while the other still warms up: the order of sums may differ.
        torch.testing.assert_close(second.unit.state_dict()[name], value, rtol=1e-3, atol=1e-4)
