"""VAEGen and MsImageDis of every option against functions written from NETWORKS.md."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from fastunit.config import DiscriminatorConfig, GeneratorConfig
from fastunit.models.unit2018 import MsImageDis, VAEGen
from tests.support.tensors import images, under

ACTS = {
    "relu": lambda x, _: F.relu(x),
    "lrelu": lambda x, _: F.leaky_relu(x, 0.2),
    "prelu": lambda x, state: F.prelu(x, state["activation.weight"]),
    "selu": lambda x, _: F.selu(x),
    "tanh": lambda x, _: torch.tanh(x),
    "none": lambda x, _: x,
}
MODES = {"zero": "constant", "reflect": "reflect", "replicate": "replicate"}

GENERATORS = [  # input_dim, n_downsample, n_res, dim, activ, pad_type, size
    (3, 2, 1, 4, "relu", "reflect", (16, 24)),
    (1, 0, 2, 3, "lrelu", "zero", (5, 7)),
    (5, 1, 0, 2, "prelu", "replicate", (6, 10)),
    (3, 3, 1, 2, "selu", "reflect", (32, 16)),
    (1, 1, 3, 1, "tanh", "zero", (2, 8)),
    (3, 2, 2, 3, "none", "replicate", (8, 12)),
]
DISCRIMINATORS = [  # input_dim, num_scales, n_layer, dim, norm, activ, pad_type, size
    (3, 3, 2, 4, "none", "lrelu", "reflect", (32, 24)),
    (1, 1, 5, 2, "in", "relu", "zero", (32, 64)),
    (5, 4, 1, 3, "ln", "prelu", "replicate", (17, 33)),
    (3, 2, 3, 2, "bn", "selu", "zero", (32, 48)),
    (1, 2, 2, 1, "ln", "tanh", "reflect", (21, 30)),
    (3, 1, 4, 2, "bn", "none", "replicate", (32, 32)),
]
GEN_FIELDS = ("n_downsample", "n_res", "dim", "activ", "pad_type")
DIS_FIELDS = ("num_scales", "n_layer", "dim", "norm", "activ", "pad_type")


def ref_block(state, prefix, x, stride, pad, norm, act, mode):
    own = under(state, prefix)
    x = F.pad(x, (pad,) * 4, mode=MODES[mode])
    x = F.conv2d(x, own["conv.weight"], own["conv.bias"], stride)
    if norm == "in":
        x = F.instance_norm(x, eps=1e-5)
    elif norm == "bn":
        x = F.batch_norm(x, None, None, own["norm.weight"], own["norm.bias"], training=True)
    elif norm == "ln":
        x = torch.stack([(s - s.mean()) / (s.std() + 1e-5) for s in x])
        x = x * own["norm.gamma"].view(-1, 1, 1) + own["norm.beta"].view(-1, 1, 1)
    return ACTS[act](x, own)


def ref_res_blocks(state, prefix, x, n_res, act, mode):
    for i in range(n_res):
        y = ref_block(state, f"{prefix}model.{i}.model.0.", x, 1, 1, "in", act, mode)
        x = x + ref_block(state, f"{prefix}model.{i}.model.1.", y, 1, 1, "in", "none", mode)
    return x


def ref_encode(state, x, n_downsample, n_res, dim, act, mode):
    x = ref_block(state, "enc.model.0.", x, 1, 3, "in", act, mode)
    for i in range(1, n_downsample + 1):
        x = ref_block(state, f"enc.model.{i}.", x, 2, 1, "in", act, mode)
    return ref_res_blocks(state, f"enc.model.{n_downsample + 1}.", x, n_res, act, mode)


def ref_decode(state, x, n_downsample, n_res, dim, act, mode):
    x = ref_res_blocks(state, "dec.model.0.", x, n_res, act, mode)
    for i in range(n_downsample):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = ref_block(state, f"dec.model.{2 * i + 2}.", x, 1, 2, "ln", act, mode)
    return ref_block(state, f"dec.model.{2 * n_downsample + 1}.", x, 1, 3, "none", "tanh", mode)


def ref_scores(state, x, num_scales, n_layer, dim, norm, act, mode):
    outputs = []
    for scale in range(num_scales):
        y = x
        for i in range(n_layer):
            block = f"cnns.{scale}.{i}."
            y = ref_block(state, block, y, 2, 1, norm if i else "none", act, mode)
        last = under(state, f"cnns.{scale}.{n_layer}.")
        outputs.append(F.conv2d(y, last["weight"], last["bias"]))
        window = x.new_ones(x.shape[1], 1, 3, 3)  # the pooling as a sum over what is there
        total, count = (
            F.conv2d(v, window, stride=2, padding=1, groups=x.shape[1])
            for v in (x, torch.ones_like(x))
        )
        x = total / count
    return outputs


def generator(input_dim=3, dim=2, n_downsample=1, n_res=1, **more) -> VAEGen:
    params = {"dim": dim, "n_downsample": n_downsample, "n_res": n_res} | more
    return VAEGen(input_dim, params).double()


def discriminator(input_dim=3, dim=2, n_layer=2, num_scales=2, **more) -> MsImageDis:
    params = {"dim": dim, "n_layer": n_layer, "num_scales": num_scales} | more
    return MsImageDis(input_dim, params).double()


@pytest.mark.parametrize(
    ("input_dim", "options", "size"), [(g[0], g[1:-1], g[-1]) for g in GENERATORS]
)
def test_generator_of_every_option(input_dim, options, size):
    gen = generator(input_dim, **dict(zip(GEN_FIELDS, options, strict=True))).eval()
    state, x = dict(gen.named_parameters()), images(2, input_dim, *size)
    hidden, wanted = gen.encode(x)[0], ref_encode(state, x, *options)
    n_downsample, dim = options[0], options[2]
    assert hidden.shape == (2, dim * 2**n_downsample, *(s // 2**n_downsample for s in size))
    torch.testing.assert_close(hidden, wanted)
    z = torch.randn_like(hidden)
    output, target = gen.decode(z), ref_decode(state, z, *options)
    assert output.shape == x.shape
    assert output.abs().max() <= 1
    torch.testing.assert_close(output, target)
    mine, theirs = (
        torch.autograd.grad((y**2).sum(), list(state.values()), allow_unused=True)
        for y in (gen(x)[0], ref_decode(state, wanted, *options))
    )
    for name, a, b in zip(state, mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("input_dim", "options", "size"), [(d[0], d[1:-1], d[-1]) for d in DISCRIMINATORS]
)
def test_discriminator_of_every_option(input_dim, options, size):
    dis = discriminator(input_dim, **dict(zip(DIS_FIELDS, options, strict=True)))
    x = images(2, input_dim, *size)
    outputs, wanted = dis(x), ref_scores(dis.state_dict(), x, *options)
    assert len(outputs) == options[0]
    for output, target in zip(outputs, wanted, strict=True):
        assert output.shape[1] == 1
        torch.testing.assert_close(output, target)


def conv(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def test_state_dict_of_a_generator():
    gen = generator(1, dim=2, n_downsample=2, n_res=1, activ="prelu", pad_type="zero")
    wanted = {
        "enc.model.0.activation.weight": (1,),
        **conv("enc.model.0.conv", 2, 1, 7, 7),
        "enc.model.1.activation.weight": (1,),
        **conv("enc.model.1.conv", 4, 2, 4, 4),
        "enc.model.2.activation.weight": (1,),
        **conv("enc.model.2.conv", 8, 4, 4, 4),
        "enc.model.3.model.0.model.0.activation.weight": (1,),
        **conv("enc.model.3.model.0.model.0.conv", 8, 8, 3, 3),
        **conv("enc.model.3.model.0.model.1.conv", 8, 8, 3, 3),
        "dec.model.0.model.0.model.0.activation.weight": (1,),
        **conv("dec.model.0.model.0.model.0.conv", 8, 8, 3, 3),
        **conv("dec.model.0.model.0.model.1.conv", 8, 8, 3, 3),
        "dec.model.2.norm.gamma": (4,),
        "dec.model.2.norm.beta": (4,),
        "dec.model.2.activation.weight": (1,),
        **conv("dec.model.2.conv", 4, 8, 5, 5),
        "dec.model.4.norm.gamma": (2,),
        "dec.model.4.norm.beta": (2,),
        "dec.model.4.activation.weight": (1,),
        **conv("dec.model.4.conv", 2, 4, 5, 5),
        **conv("dec.model.5.conv", 1, 2, 7, 7),
    }
    assert {k: tuple(v.shape) for k, v in gen.state_dict().items()} == wanted


def test_state_dict_of_a_discriminator():
    dis = discriminator(5, dim=3, n_layer=2, num_scales=2, norm="bn", activ="prelu")
    wanted = {}
    for net in ("cnns.0", "cnns.1"):
        wanted |= {f"{net}.{i}.activation.weight": (1,) for i in range(2)}
        wanted |= conv(f"{net}.0.conv", 3, 5, 4, 4) | conv(f"{net}.1.conv", 6, 3, 4, 4)
        wanted |= conv(f"{net}.2", 1, 6, 1, 1)
        of_channels = ("weight", "bias", "running_mean", "running_var")
        wanted |= {f"{net}.1.norm.{name}": (6,) for name in of_channels}
        wanted[f"{net}.1.norm.num_batches_tracked"] = ()
    assert {k: tuple(v.shape) for k, v in dis.state_dict().items()} == wanted


def test_generator_draws_noise_in_training_only():
    gen, x = generator(), images(2, 3, 8, 12)
    hidden, noise = gen.encode(x)
    assert noise.shape == hidden.shape
    assert not torch.equal(gen.encode(x)[1], noise)
    torch.manual_seed(5)
    seeded = gen.encode(x)[1]
    torch.manual_seed(5)
    output, code = gen.train()(x)
    assert torch.equal(code, hidden)
    torch.testing.assert_close(output, gen.decode(hidden + seeded))
    assert not torch.equal(gen(x)[0], output)
    gen.eval()
    torch.testing.assert_close(gen(x)[0], gen.decode(hidden))
    assert torch.equal(gen(x)[0], gen(x)[0])


def test_noise_is_unit_normal():
    noise = generator(dim=8).encode(images(4, 3, 64, 64))[1]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_options_may_be_a_dataclass():
    x = images(1, 3, 8, 8)
    gen, dis = generator(activ="selu"), discriminator(norm="in")
    mine = VAEGen(3, GeneratorConfig(dim=2, n_downsample=1, n_res=1, activ="selu")).double()
    mine.load_state_dict(gen.state_dict())
    assert torch.equal(mine.eval()(x)[0], gen.eval()(x)[0])
    other = MsImageDis(3, DiscriminatorConfig(dim=2, n_layer=2, num_scales=2, norm="in")).double()
    other.load_state_dict(dis.state_dict())
    assert all(map(torch.equal, other(x), dis(x)))


@pytest.mark.parametrize("gan_type", ["lsgan", "nsgan"])
@pytest.mark.parametrize("norm", ["none", "bn"])
def test_losses_are_their_formulas(gan_type, norm):
    """With bn this also shows that real and fake are normalised apart."""
    dis = discriminator(gan_type=gan_type, norm=norm)
    real, fake = images(3, 3, 16, 16), images(2, 3, 16, 16) / 4
    options = (2, 2, 2, norm, "lrelu", "reflect")
    on_real, on_fake = (ref_scores(dis.state_dict(), x, *options) for x in (real, fake))
    if gan_type == "lsgan":
        wanted_gen = sum(((y - 1) ** 2).mean() for y in on_fake)
        wanted = sum((y**2).mean() for y in on_fake) + sum(((y - 1) ** 2).mean() for y in on_real)
    else:
        wanted_gen = sum(-torch.log(torch.sigmoid(y)).mean() for y in on_fake)
        wanted = sum(-torch.log(1 - torch.sigmoid(y)).mean() for y in on_fake)
        wanted += sum(-torch.log(torch.sigmoid(y)).mean() for y in on_real)
    torch.testing.assert_close(dis.calc_dis_loss(fake, real), wanted)
    torch.testing.assert_close(dis.calc_gen_loss(fake), wanted_gen)
    if norm == "bn":
        assert dis.cnns[0][1].norm.num_batches_tracked == 3  # two passes and one


@pytest.mark.parametrize("sign", [-1, 1])
def test_nsgan_survives_extreme_logits(sign):
    dis = discriminator(gan_type="nsgan", num_scales=1, n_layer=1)
    torch.nn.init.constant_(dis.cnns[0][-1].bias, 1e4 * sign)
    x = images(1, 3, 8, 8)
    assert dis.calc_dis_loss(x, x).item() == pytest.approx(1e4, rel=1e-3)


NAMES = ("relu", "lrelu", "prelu", "selu", "tanh", "none")
WRONG = [
    (lambda: generator(activ="tahn"), ("gen.activ='tahn'", *NAMES, "did you mean 'tanh'?")),
    (lambda: generator(pad_type="same"), ("gen.pad_type='same'", "zero", "reflect", "replicate")),
    (lambda: generator(dim=0), ("gen.dim=0", "at least 1")),
    (lambda: generator(n_res=-1), ("gen.n_res=-1", "at least 0")),
    (lambda: generator(n_downsample=1.5), ("gen.n_downsample=1.5", "whole number")),
    (lambda: generator(n_dowsample=2), ("gen.n_dowsample", "did you mean gen.n_downsample?")),
    (lambda: generator(input_dim=0), ("input_dim=0", "at least 1")),
    (lambda: VAEGen(3, GeneratorConfig(dim=0)), ("gen.dim=0", "at least 1")),
    (lambda: VAEGen(3, [4]), ("gen", "section", "[4]")),
    (lambda: discriminator(norm="batch"), ("dis.norm='batch'", "none", "bn", "in", "ln")),
    (lambda: discriminator(activ=None), ("dis.activ=None", "text")),
    (lambda: discriminator(gan_type="lsgn"), ("dis.gan_type='lsgn'", "lsgan, nsgan", "did you")),
    (lambda: discriminator(n_layer=0), ("dis.n_layer=0", "at least 1")),
    (lambda: discriminator(num_scales=True), ("dis.num_scales=True", "whole number")),
    (lambda: discriminator(n_layers=4), ("dis.n_layers", "did you mean dis.n_layer?")),
    (lambda: discriminator(input_dim=3.0), ("input_dim=3.0", "whole number")),
    (lambda: MsImageDis(3, DiscriminatorConfig(norm="x")), ("dis.norm='x'", "none, bn, in, ln")),
    (lambda: generator()(images(1, 1, 8, 8)), ("[N, 3, H, W]", "(1, 1, 8, 8)")),
    (lambda: generator().encode(images(3, 8, 8)), ("[N, 3, H, W]", "(3, 8, 8)")),
    (lambda: generator(n_downsample=2)(images(1, 3, 8, 10)), ("8x10", "multiples of 4")),
    (lambda: generator(n_downsample=3)(images(1, 3, 12, 8)), ("12x8", "multiples of 8")),
    (lambda: discriminator(1)(images(1, 3, 8, 8)), ("[N, 1, H, W]", "(1, 3, 8, 8)")),
    (lambda: discriminator(pad_type="zero")(images(1, 3, 1, 8)), ("4x4 filter", "1x8")),
]


@pytest.mark.parametrize(("call", "parts"), WRONG, ids=[" ".join(parts) for _, parts in WRONG])
def test_what_is_wrong_is_named_with_the_choices(call, parts):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        call()
