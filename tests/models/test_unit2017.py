"""The paper's generators against recorded numbers and functions written from NETWORKS.md."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastunit.models import chain, grouped, unit2017
from fastunit.models.init import initialise
from fastunit.models.unit2017 import COCOResGen, COCOResGen2, INSResBlock
from tests.support.compare import assert_gradients_near, assert_near
from tests.support.golden import FORWARD, GRADIENT
from tests.support.tensors import images, under

CASES = ("paper_resgen", "paper_resgen2")
OUTPUTS = ("x_aa", "x_ba", "x_ab", "x_bb", "shared")


def depth(front, *blocks):
    """Return options: the layers at both ends, and residual blocks from encoder to decoder."""
    ends = {"n_enc_front_blk": front, "n_gen_front_blk": front}
    names = "n_enc_res_blk", "n_enc_shared_blk", "n_gen_shared_blk", "n_gen_res_blk"
    return ends | dict(zip(names, blocks, strict=True))


SMALL = {"ch": 3, "input_dim_a": 3, "input_dim_b": 3} | depth(2, 1, 1, 1, 1)
VARIANTS = [
    {"input_dim_a": 1, "ch": 1},
    {"input_dim_b": 1, "input_dim_a": 5},
    depth(1, 1, 1, 1, 1),
    depth(2, 0, 0, 0, 0),
    depth(3, 0, 1, 2, 1),
    depth(4, 1, 3, 0, 2),
]


def make(cls=COCOResGen, **changes):
    return cls(SMALL | changes).double()


class Reference:
    """A generator in plain PyTorch, of another's parameters."""

    def __init__(self, gen):
        self.gen, self.state, self.options = gen, dict(gen.named_parameters()), gen.options

    def layer(self, name, x, transposed=False, **options):
        apply = F.conv_transpose2d if transposed else F.conv2d
        return apply(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def outer(self, x):
        """Apply what follows the layers that halve and double the size."""
        plain = isinstance(self.gen, COCOResGen2)
        return F.leaky_relu(x, 0.01) if plain else F.relu(F.instance_norm(x))

    def res_blocks(self, name, x, first, count):
        for i in range(first, first + count):
            y = F.relu(F.instance_norm(self.layer(f"{name}.{i}.model.0", x, padding=1)))
            x = x + F.instance_norm(self.layer(f"{name}.{i}.model.3", y, padding=1))
        return x

    def encode(self, side, x):
        front = self.options.n_enc_front_blk
        x = F.leaky_relu(self.layer(f"encode_{side}.0.model.0", x, padding=3), 0.01)
        for i in range(1, front):
            x = self.outer(self.layer(f"encode_{side}.{i}.model.0", x, stride=2, padding=1))
        x = self.res_blocks(f"encode_{side}", x, front, self.options.n_enc_res_blk)
        return self.res_blocks("enc_shared", x, 0, self.options.n_enc_shared_blk)

    def decode(self, side, z):
        name, first = f"decode_{side}", self.options.n_gen_res_blk
        z = self.res_blocks("dec_shared", z, 0, self.options.n_gen_shared_blk)
        z = self.res_blocks(name, z, 0, first)
        last = first + self.options.n_gen_front_blk - 1
        twice = {"stride": 2, "padding": 1, "output_padding": 1}
        for i in range(first, last):
            z = self.outer(self.layer(f"{name}.{i}.model.0", z, transposed=True, **twice))
        return torch.tanh(self.layer(f"{name}.{last}", z, transposed=True))

    def __call__(self, x_a, x_b, noise):
        z = torch.cat([self.encode("A", x_a), self.encode("B", x_b)]) + noise
        sides = (self.decode(side, z) for side in "AB")
        return *(x for side in sides for x in (side[: len(x_a)], side[len(x_a) :])), z


def gradients(outputs, inputs, weights):
    """Return the gradients of the weighted outputs; zeros for what has no part in them."""
    total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


@pytest.fixture(params=CASES)
def golden(request, load_golden):
    """Return a generator in training mode that has a golden case's parameters, and the arrays."""
    meta, arrays = load_golden(request.param)
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    state = under(tensors, "state/")
    gen = getattr(unit2017, meta["network"])(meta["params"]).double()
    assert list(gen.state_dict()) == list(state)
    gen.load_state_dict(state, strict=True)
    return gen, tensors


def test_recorded_outputs_and_gradients(golden):
    gen, arrays = golden
    x_a, x_b = (arrays[name].clone().requires_grad_() for name in ("x_a", "x_b"))
    outputs = gen(x_a, x_b, arrays["noise.shared"])
    for name, output in zip(OUTPUTS, outputs, strict=True):
        assert_near(output, arrays[name], FORWARD, name)
    inputs = {"x_a": x_a, "x_b": x_b, **dict(gen.named_parameters())}
    weights = [arrays[f"cotangent/{name}"] for name in OUTPUTS]
    found = gradients(outputs, list(inputs.values()), weights)
    mine = dict(zip(inputs, found, strict=True))
    assert_gradients_near(mine, under(arrays, "grad/"), GRADIENT)


def test_recorded_translation(golden):
    gen, arrays = golden
    x_a, x_b, wanted = (arrays[name] for name in ("x_a", "x_b", "eval/x_ab"))
    assert_near(gen.translate(x_a, "a2b"), wanted, FORWARD, "alone")
    assert_near(gen.eval()(x_a, x_b)[2], wanted, FORWARD, "both")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cls", [COCOResGen, COCOResGen2])
def test_every_option_is_its_formula(cls, variant):
    gen = make(cls, **variant)
    size = 2 * gen.multiple, 3 * gen.multiple
    x_a = images(2, gen.options.input_dim_a, *size).requires_grad_()
    x_b = images(1, gen.options.input_dim_b, *size).requires_grad_()
    noise = torch.randn(3, gen.code_dim, 2, 3, dtype=torch.float64)
    mine, wanted = gen(x_a, x_b, noise), Reference(gen)(x_a, x_b, noise)
    for name, output, target in zip(OUTPUTS, mine, wanted, strict=True):
        assert_near(output, target, FORWARD, name)
    weights = [torch.randn_like(y) for y in mine]
    inputs = {"x_a": x_a, "x_b": x_b, **dict(gen.named_parameters())}
    found = [gradients(ys, list(inputs.values()), weights) for ys in (mine, wanted)]
    assert_gradients_near(*(dict(zip(inputs, values, strict=True)) for values in found), GRADIENT)


@torch.no_grad()
def test_noise_is_drawn_in_training_only():
    gen, x_a, x_b = make(ch=16), images(3, 3, 32, 32), images(5, 3, 32, 32)
    mu = torch.cat(gen.encode(x_a, x_b))
    noises = [gen.train()(x_a, x_b)[-1] - mu for _ in range(2)]
    assert not torch.equal(*noises)
    for noise in noises:
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    z, kl = gen.sample(mu, noise)
    torch.testing.assert_close(kl, mu.square().mean())
    torch.testing.assert_close(z, mu + noise)
    assert torch.equal(gen(x_a, x_b, noise)[-1], z)
    gen.eval()
    assert torch.equal(gen(x_a, x_b)[-1], mu)
    torch.testing.assert_close(gen.domains["b"](x_b)[0], gen(x_a, x_b)[3])
    assert all(map(torch.equal, gen(x_a, x_b), gen(x_a, x_b, noise)))


@pytest.mark.parametrize("shape_b", [(2, 1, 8, 8), (3, 1, 4, 8), (1, 3, 8, 8)])
def test_the_parts_of_a_training_step(shape_b, monkeypatch):
    gen, x_a, x_b = make(input_dim_b=shape_b[1]), images(2, 3, 8, 8), images(*shape_b)
    plain, joined = Reference(gen), shape_b[2:] == (8, 8)
    calls, run = [], grouped.apply
    blocks = {shared[0].first.conv.weight: shared[0] for shared in (gen.enc_shared, gen.dec_shared)}

    def counted(plan, x, w, *inputs, **options):
        if w in blocks:
            calls.append(blocks[w])
        return run(plan, x, w, *inputs, **options)

    for module in (grouped, chain):
        monkeypatch.setattr(module, "apply", counted)
    mu_a, mu_b = gen.encode(x_a, x_b)
    assert calls == [gen.enc_shared[0]] * (1 if joined else 2)
    for mu, side, x in ((mu_a, "A", x_a), (mu_b, "B", x_b)):
        torch.testing.assert_close(mu, plain.encode(side, x))
        torch.testing.assert_close(gen.code(x, side.lower()), mu)
    z_a, z_b = mu_a + 1, mu_b - 1
    calls.clear()
    for side, found, z in zip("AB", gen.decode(z_b, z_a), (z_b, z_a), strict=True):
        torch.testing.assert_close(found, plain.decode(side, z))
    assert len(calls) == (1 if joined else 2)
    calls.clear()
    for side, found in zip("AB", gen.decode(z_b, z_b), strict=True):
        torch.testing.assert_close(found, plain.decode(side, z_b))
    assert len(calls) == 1


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (7, 13), (3, 40), (16, 4)])
@pytest.mark.parametrize("front", [1, 3])
def test_translate_takes_any_size(size, front):
    gen = make(input_dim_a=1, **depth(front, 1, 1, 1, 1)).train()
    plain, multiple = Reference(gen), gen.multiple
    rows, columns = (max(-(-s // multiple) * multiple, 2 * multiple, 4) - s for s in size)
    for channels, direction, (source, target) in ((1, "a2b", "AB"), (3, "b2a", "BA")):
        x = images(2, channels, *size)
        y, whole = gen.translate(x, direction), F.pad(x, (0, columns, 0, rows), mode="replicate")
        wanted = plain.decode(target, plain.encode(source, whole))
        torch.testing.assert_close(y, wanted[..., : size[0], : size[1]])


def test_a_residual_block_drops_before_adding_its_input():
    block, x = INSResBlock(4, 0.5).double(), images(3, 4, 6, 7)
    torch.manual_seed(1)
    mine = block(x)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, x + block.model(x))
    assert 0.4 < (mine == x).double().mean() < 0.6
    assert not (block.eval()(x) == x).any()


def test_dropout_acts_in_training_only_and_has_no_keys():
    gen, plain = make(res_dropout_ratio=0.3), make()
    gen.load_state_dict(plain.state_dict(), strict=True)
    blocks = [m for m in gen.modules() if isinstance(m, INSResBlock)]
    assert len(blocks) == 6
    assert all(isinstance(b.model[5], torch.nn.Dropout) and b.model[5].p == 0.3 for b in blocks)
    x_a, x_b, noise = images(1, 3, 8, 8), images(1, 3, 8, 8), images(2, 6, 4, 4)
    assert not torch.equal(gen(x_a, x_b, noise)[0], gen(x_a, x_b, noise)[0])
    assert all(map(torch.equal, gen.eval()(x_a, x_b), plain.eval()(x_a, x_b)))


def test_a_copy_has_domains_of_its_own():
    gen = copy.deepcopy(make())
    assert gen.domains["a"].enc[0] is gen.encode_A and gen.domains["a"].dec[1] is gen.decode_A
    assert gen.domains["b"].enc[0] is gen.encode_B and gen.domains["b"].dec[1] is gen.decode_B


def test_initialise_reaches_every_convolution():
    gen = make(ch=16)
    initialise(gen, "gaussian")
    for name, p in gen.named_parameters():
        wanted = 0.0 if name.endswith("bias") else 0.02
        assert p.std(correction=0).item() == pytest.approx(wanted, rel=0.35), name


def precisely(gen, arrays, dtype, device, mixed=False):
    """Return outputs and gradients of both forms of a generator, `mixed` under autocast."""
    gen, tensors = gen.to(device, dtype), [array.to(device, dtype) for array in arrays]
    found = []
    for form in (gen, Reference(gen)):
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            outputs = form(*tensors)
        grads = gradients(outputs, list(gen.parameters()), [torch.ones_like(y) for y in outputs])
        found.append([value.detach().double().cpu() for value in (*outputs, *grads)])
    return found


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("cls", [COCOResGen, COCOResGen2])
def test_is_as_precise_as_eager_pytorch(cls, precision, device):
    """Twice eager PyTorch's error at most, and a few roundings."""
    mixed = precision == "autocast"
    dtype = torch.float32 if mixed else getattr(torch, precision)
    gen = make(cls, ch=8, **depth(3, 1, 1, 1, 1)).to(dtype)  # for the exact result too
    shapes = (1, 3, 16, 24), (1, 3, 16, 24), (2, 32, 4, 6)
    arrays = [torch.randn(shape).to(dtype) for shape in shapes]
    exact = precisely(gen, arrays, torch.float64, "cpu")[1]
    mine, eager = precisely(gen, arrays, dtype, device, mixed)
    largest, names = max(v.norm() for v in exact[5:]), (*OUTPUTS, *dict(gen.named_parameters()))
    floor = 4 * torch.finfo(torch.bfloat16 if mixed else dtype).eps
    for name, ours, theirs, wanted in zip(names, mine, eager, exact, strict=True):
        scale = wanted.norm() if name in OUTPUTS else largest
        assert (ours - wanted).norm() <= 2 * (theirs - wanted).norm() + floor * scale, name


WRONG = [
    (lambda: make().code(images(1, 3, 8, 9), "a"), "8x9 .*1 times.* multiples of 2"),
    (lambda: make().code(images(1, 3, 8, 8), "A"), "domain='A' must be one of a, b"),
    (lambda: make().encode(images(1, 3, 8, 8), images(1, 1, 8, 8)), r"\[N, 3, H, W\].*1, 1, 8, 8"),
    (lambda: make()(images(1, 3, 8, 8), images(1, 3, 4, 8)), r"\(1, 3, 8, 8\).*\(1, 3, 4, 8\)"),
    (lambda: make()(*[images(1, 3, 8, 8)] * 2, images(1, 6, 4, 4)), r"noise of shape \(1, 6, 4"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
