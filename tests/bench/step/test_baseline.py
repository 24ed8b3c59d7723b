"""The benchmarks' opponents compute what the release does: the golden cases, and every option."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bench.step import baseline
from bench.step.baseline import BaselineStep, strongest
from fastunit import config
from fastunit.compat import ATTRIBUTES
from fastunit.models.unit import UNIT
from fastunit.training.step import TrainStep
from tests.support.golden import CASES, FORWARD, GRADIENT, NETWORKS, Golden

CPU = torch.device("cpu")
OPPONENTS = {"baseline": BaselineStep, "strongest": lambda settings: strongest(settings, CPU)}
SMALL = {
    "gen": {"dim": 4, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
    "share_fakes": False,
}


@pytest.fixture(params=OPPONENTS)
def opponent(request) -> Iterator:
    """Return a maker of either opponent; what it compiles runs uncompiled here."""
    with torch.compiler.set_stance("force_eager"):
        yield OPPONENTS[request.param]


class Case(Golden):
    """A golden case and a step that starts from its parameters, in float64."""

    def __init__(self, opponent, meta, arrays):
        super().__init__(meta, arrays)
        self.settings = config.from_dict(meta["config"])
        self.step = opponent(self.settings).double()
        self.load_initial(self.step)


@pytest.fixture(params=CASES)
def case(request, opponent, load_golden) -> Case:
    return Case(opponent, *load_golden(request.param))


def test_state_dicts_are_those_of_the_release_and_of_fastunit(case):
    for name in NETWORKS:
        golden, mine = case.group(f"init/{name}."), getattr(case.step, name).state_dict()
        assert list(mine) == list(golden)
    unit = UNIT(case.settings).double()
    case.step.load_state_dict(unit.state_dict())
    weights = case.step.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in unit.state_dict().items())


def test_forward(case):
    step, (x_a, x_b) = case.step, case.images
    with torch.no_grad():
        hidden = step.gen_a.encode(x_a)[0]
        outputs = {
            "hidden_a": hidden,
            "recon_a": step.gen_a.decode(hidden),
            "x_ab": step.gen_b.decode(hidden),
            "x_ba": step.gen_a.decode(step.gen_b.encode(x_b)[0]),
        }
        outputs |= {f"dis_a.{i}": output for i, output in enumerate(step.dis_a(x_a))}
    case.assert_forward(outputs)


def test_training_steps(case):
    for number, golden in enumerate(case.meta["losses"]):
        losses = case.step.dis_update(*case.images, case.group(f"step{number}/noise.dis."))
        if number == 0:
            case.assert_gradients(case.step, "dis_update", ("dis_a", "dis_b"))
        losses |= case.step.gen_update(*case.images, case.group(f"step{number}/noise.gen."))
        if number == 0:
            case.assert_gradients(case.step, "gen_update", ("gen_a", "gen_b"))
        unused = {"loss_gen_vgg_a": 0.0, "loss_gen_vgg_b": 0.0}
        mine = {name: loss.item() for name, loss in losses.items()} | unused
        assert mine == pytest.approx(golden, rel=FORWARD, abs=0)
    case.assert_final(case.step)


def normals(settings):
    gen = settings.gen
    side, channels = 16 // 2**gen.n_downsample, gen.dim * 2**gen.n_downsample
    return {
        key: torch.randn(2, channels, side, side, dtype=torch.float64)
        for key in ("a", "b", "ba", "ab")
    }


@pytest.mark.parametrize(
    "options",
    [
        {"gen": {"activ": "prelu", "pad_type": "replicate"}, "dis": {"norm": "bn"}},
        {"gen": {"activ": "selu", "n_downsample": 2}, "dis": {"norm": "in", "activ": "tanh"}},
        {"gen": {"activ": "none", "n_res": 0}, "dis": {"norm": "ln"}, "recon_x_cyc_w": 0.0},
    ],
)
def test_options_as_fastunit(options, opponent):
    settings = config.from_dict(
        {k: v | options.get(k, {}) if isinstance(v, dict) else v for k, v in SMALL.items()}
        | {k: v for k, v in options.items() if k not in SMALL}
    )
    unit, step = UNIT(settings).double(), opponent(settings).double()
    step.load_state_dict(unit.state_dict())
    images = [torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    noise = normals(settings)
    expected = TrainStep(unit, settings)(*images, noise)
    losses = step.dis_update(*images, noise) | step.gen_update(*images, noise)
    assert losses.keys() == {ATTRIBUTES[name] for name in expected}
    for name, reference in expected.items():
        assert losses[ATTRIBUTES[name]].item() == pytest.approx(reference.item(), rel=FORWARD)
    for key, value in unit.state_dict().items():
        torch.testing.assert_close(step.state_dict()[key], value, rtol=GRADIENT, atol=1e-8)


class ComposedNorm(nn.Module):
    """Instance norm as a formula: PyTorch's backward may be wrong for one image on a CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("pad", ["zero", "reflect"])
def test_gradients_of_one_image_in_channels_last_are_right(pad, opponent, monkeypatch):
    settings = config.from_dict(
        {"gen": SMALL["gen"] | {"pad_type": pad}, "share_fakes": False}
        | {"dis": SMALL["dis"] | {"norm": "in", "pad_type": pad}}
    )
    step = opponent(settings).to(memory_format=torch.channels_last)
    monkeypatch.setitem(baseline._NORMS, "in", ComposedNorm)
    composed = BaselineStep(settings).double()
    composed.load_state_dict(step.state_dict())
    images = [torch.rand(1, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    noise = {key: value[:1] for key, value in normals(settings).items()}
    last = [x.float().contiguous(memory_format=torch.channels_last) for x in images]
    for name in ("dis", "gen"):
        for each, given in ((step, last), (composed, images)):
            dtype = given[0].dtype
            losses = getattr(each, f"{name}_losses")
            each.zero_grad()
            own = {key: value.to(dtype) for key, value in noise.items()}
            losses(*given, own)[f"loss_{name}_total"].backward()
        wanted = {key: p.grad for key, p in composed.named_parameters() if p.grad is not None}
        assert wanted
        for key, p in step.named_parameters():
            if key in wanted:
                error = (p.grad - wanted[key]).abs().max()
                assert error <= 1e-4 * (1 + wanted[key].abs().max()), key


@pytest.mark.parametrize(("name", "wasteful"), [("baseline", True), ("strongest", False)])
def test_only_the_baseline_does_the_work_that_the_release_throws_away(name, wasteful):
    seen = []
    with torch.compiler.set_stance("force_eager"):
        step = OPPONENTS[name](config.from_dict(SMALL))
        step.gen_a.dec.register_forward_hook(lambda *args: seen.append(args[-1].requires_grad))
        images = torch.rand(2, 2, 3, 16, 16)
        step.dis_update(*images)
        assert seen == [wasteful]  # a graph of the fakes
        step.dis_opt.zero_grad()
        step.gen_update(*images)
    weights = [*step.dis_a.parameters(), *step.dis_b.parameters()]
    assert {weight.grad is not None for weight in weights} == {wasteful}
    assert all(weight.requires_grad for weight in weights)


@pytest.mark.parametrize("options", [{"share": {"enc": 1}}, {"share": {"dec": 1}}, {"vgg_w": 1.0}])
def test_refuses_what_it_does_not_do(options):
    settings = config.from_dict(SMALL | options | {"vgg_model_path": "vgg16.pth"})
    with pytest.raises(ValueError, match="no shared blocks and no perceptual term"):
        BaselineStep(settings)


@pytest.mark.slow
def test_strongest_compiled():
    # The time is the C++ compiler's: the fewest layers that show every kind.
    gen, dis = SMALL["gen"] | {"n_res": 0}, {"dim": 4, "n_layer": 1, "num_scales": 1}
    settings = config.from_dict(SMALL | {"gen": gen, "dis": dis, "recon_x_cyc_w": 0.0})
    plain, compiled = BaselineStep(settings).double(), strongest(settings, CPU).double()
    compiled.load_state_dict(plain.state_dict())
    images = [torch.rand(2, 3, 16, 16, dtype=torch.float64) for _ in range(2)]
    noise = normals(settings)
    for _ in range(2):
        losses = compiled.dis_update(*images, noise) | compiled.gen_update(*images, noise)
        expected = plain.dis_update(*images, noise) | plain.gen_update(*images, noise)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(expected[name].item(), rel=FORWARD), name
