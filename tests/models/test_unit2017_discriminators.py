"""The paper's discriminators, and all its networks' options, against NETWORKS.md."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastunit.config.schema2017 import DisOptions, ResGenOptions, SharedDisOptions
from fastunit.models import chain, grouped, unit2017
from fastunit.models.unit2017 import COCODis, COCOMsDis, COCOResGen, COCOSharedDis
from fastunit.models.unit2017_discriminators import blur_downsample
from tests.support.tensors import images

CASES = ("paper_dis", "paper_msdis", "paper_shared_dis")
FORWARD = 1e-9  # relative, from golden/README.md

SMALL = {"ch": 2, "input_dim_a": 3, "input_dim_b": 3}
VARIANTS = [
    (COCODis, {"n_layer": 1}),
    (COCODis, {"n_layer": 4, "input_dim_a": 1}),
    (COCOMsDis, {"n_layer": 1, "input_dim_b": 1}),
    (COCOMsDis, {"n_layer": 3, "ch": 3}),
    (COCOSharedDis, {"n_front_layer": 1, "n_shared_layer": 0}),
    (COCOSharedDis, {"n_front_layer": 3, "n_shared_layer": 0, "input_dim_b": 5}),
    (COCOSharedDis, {"n_front_layer": 1, "n_shared_layer": 3, "input_dim_a": 1}),
    (COCOSharedDis, {"n_front_layer": 2, "n_shared_layer": 1}),
]
SIZES = [((2, 16, 16), (2, 16, 16)), ((1, 33, 47), (3, 20, 9)), ((2, 1, 1), (1, 2, 3))]
PRECISE = [VARIANTS[1], VARIANTS[3], VARIANTS[7]]  # one of each class


def make(cls, params):
    return cls(SMALL | params).double()


def of_both(dis, sizes):
    """Return an image batch of each domain, for sizes (N, H, W)."""
    channels = dis.options.input_dim_a, dis.options.input_dim_b
    return [images(n, c, h, w) for c, (n, h, w) in zip(channels, sizes, strict=True)]


def ref_blur(x):
    taps = torch.tensor([1, 2, 1], dtype=x.dtype, device=x.device) / 4
    window = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    framed = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(framed, window, groups=x.shape[1])[..., ::2, ::2]


def ref_net(state, name, x, count, taps=3):
    """Apply `count` stride-2 layers, the first of taps x taps, and a last layer if it is there."""
    for i in range(count):
        w, b = (state[f"{name}.{i}.model.0.{part}"] for part in ("weight", "bias"))
        assert w.shape[2:] == ((taps, taps) if i == 0 else (3, 3))
        x = F.leaky_relu(F.conv2d(x, w, b, stride=2, padding=w.shape[2] // 2), 0.01)
    last = state.get(f"{name}.{count}.weight")
    return x if last is None else F.conv2d(x, last, state[f"{name}.{count}.bias"])


def reference(dis, domain, x):
    """Return a domain's outputs in plain PyTorch, of the network's own parameters."""
    state, options = dict(dis.named_parameters()), dis.options
    if isinstance(dis, COCOSharedDis):
        y = ref_net(state, f"model_{domain}", x, options.n_front_layer, taps=7)
        return [ref_net(state, "model_S", y, options.n_shared_layer)]
    if isinstance(dis, COCODis):
        return [ref_net(state, f"model_{domain}", x, options.n_layer)]
    scales = x, ref_blur(x), ref_blur(ref_blur(x))
    names = [f"model_{scale}_{domain}" for scale in (1, 2, 4)]
    return [ref_net(state, name, y, options.n_layer) for name, y in zip(names, scales, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs(name, load_golden):
    meta, arrays = load_golden(name)
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items()}
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    dis = getattr(unit2017, meta["network"])(meta["params"]).double()
    assert list(dis.state_dict()) == list(state)
    dis.load_state_dict(state, strict=True)
    found = {
        f"out_{domain}.{i}": output
        for domain, outputs in zip("ab", dis(tensors["x_a"], tensors["x_b"]), strict=True)
        for i, output in enumerate(outputs)
    }
    assert found.keys() == {key for key in tensors if key.startswith("out_")}
    for key, output in found.items():
        wanted = tensors[key]
        assert output.shape == wanted.shape, key
        assert (output - wanted).abs().max() < FORWARD * wanted.abs().max(), key


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("cls", "params"), VARIANTS)
def test_every_option_is_its_formula(cls, params, sizes):
    dis = make(cls, params)
    x_a, x_b = (x.requires_grad_() for x in of_both(dis, sizes))
    mine, found = dis.discriminate(x_a, x_b), dis(x_a, x_b)
    wanted = reference(dis, "A", x_a), reference(dis, "B", x_b)
    alone = dis.discriminate_a(x_a), dis.discriminate_b(x_b)
    for outputs, flat, apart, targets in zip(mine, found, alone, wanted, strict=True):
        for lists in zip(outputs, flat, apart, targets, strict=True):
            output, logits, single, target = lists
            torch.testing.assert_close(output, target)
            torch.testing.assert_close(single, target)
            assert torch.equal(logits, output.flatten())
    inputs = [x_a, x_b, *dis.parameters()]
    losses = (sum((y**2).sum() for ys in both for y in ys) for both in (mine, wanted))
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_the_last_layer_is_shared_with_the_layers_before_it():
    for shared, with_logits in ((0, ["model_A.1.", "model_B.1."]), (1, ["model_S.1."])):
        state = make(COCOSharedDis, {"n_front_layer": 1, "n_shared_layer": shared}).state_dict()
        found = [name for name, value in state.items() if value.shape[-2:] == (1, 1)]
        assert found == [f"{prefix}weight" for prefix in with_logits]


def test_shared_layers_run_once_over_both_domains(monkeypatch):
    dis, calls, run = make(*VARIANTS[-1]), [], grouped.apply

    def counted(plan, x, w, *args, **options):  # no hook: it would have the layer run apart
        if w is dis.model_S[0].model[0].weight:
            calls.append(None)
        return run(plan, x, w, *args, **options)

    for module in (grouped, chain):
        monkeypatch.setattr(module, "apply", counted)
    for sizes, count in zip(SIZES[:2], (1, 2), strict=True):
        dis(*of_both(dis, sizes))
        assert len(calls) == count
        calls.clear()


@pytest.mark.parametrize(("cls", "params"), PRECISE)
def test_a_copy_has_domains_of_its_own(cls, params):
    dis = copy.deepcopy(make(cls, params))
    mine = {id(p) for p in dis.parameters()}
    of_domains = {id(p) for domain in dis.domains.values() for p in domain.parameters()}
    assert of_domains == mine


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 5), (2, 1)])
def test_the_blur_is_a_gaussian(size):
    x = images(2, 3, *size)
    torch.testing.assert_close(blur_downsample(x), ref_blur(x), rtol=1e-12, atol=1e-12)
    flat = torch.full((1, 1, *size), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur_downsample(flat), flat[..., ::2, ::2])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize(("cls", "params"), PRECISE)
def test_is_as_precise_as_eager_pytorch(cls, params, precision, device):
    """Twice eager PyTorch's error at most, and a few roundings."""
    mixed = precision == "autocast"
    dtype = torch.float32 if mixed else getattr(torch, precision)
    dis = make(cls, params | {"ch": 8}).to(dtype)
    image = of_both(dis, [(2, 24, 32)] * 2)[1].to(dtype)

    def run(form, device, dtype, mixed=False):
        """Return domain b's outputs and the gradients of the parameters that they depend on."""
        dis.to(device, dtype)
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            outputs = form(image.to(device, dtype))
        parameters = dict(dis.named_parameters()).items()
        leaves = [p for name, p in parameters if not name.split(".")[0].endswith("A")]
        grads = torch.autograd.grad(sum(y.sum() for y in outputs), leaves)
        return [v.detach().double().cpu() for v in (*outputs, *grads)]

    forms = dis.discriminate_b, lambda x: reference(dis, "B", x)
    exact = run(forms[1], "cpu", torch.float64)
    mine, eager = (run(form, device, dtype, mixed) for form in forms)
    floor = 4 * torch.finfo(torch.bfloat16 if mixed else dtype).eps
    for index, (ours, theirs, wanted) in enumerate(zip(mine, eager, exact, strict=True)):
        limit = 2 * (theirs - wanted).norm() + floor * wanted.norm()
        assert (ours - wanted).norm() <= limit, index


def test_options_may_be_dataclasses():
    front = {"n_enc_front_blk": 2, "n_gen_front_blk": 2, "n_enc_res_blk": 0, "n_gen_res_blk": 0}
    gen = SMALL | front | {"n_enc_shared_blk": 0, "n_gen_shared_blk": 0}
    for cls, options, params in (
        (COCODis, DisOptions, SMALL | {"n_layer": 2}),
        (COCOSharedDis, SharedDisOptions, SMALL | {"n_front_layer": 1, "n_shared_layer": 2}),
        (COCOResGen, ResGenOptions, gen),
        (COCOResGen, ResGenOptions, gen | {"res_dropout_ratio": 0.25}),
    ):
        assert cls(options(**params)).options == cls(params).options == options(**params)
    assert COCODis(SMALL | {"n_layer": 2, "name": "COCODis"}).options.n_layer == 2
    assert COCODis(SMALL | {"n_layer": "2"}).options == DisOptions(2, 2)  # from YAML


GEN = SMALL | {"n_enc_front_blk": 2, "n_enc_res_blk": 1, "n_enc_shared_blk": 1}
GEN |= {"n_gen_shared_blk": 1, "n_gen_res_blk": 1, "n_gen_front_blk": 2}
WRONG = [
    (COCOResGen, GEN | {"n_layer": 4}, "unknown key 'gen.n_layer'"),
    (COCOResGen, {"n_gen_rez_blk": 4}, "did you mean gen.n_gen_res_blk?"),
    (COCOResGen, {"ch": 4}, "gen has no n_enc_front_blk, .*input_dim_b; it must hold ch, .*blk"),
    (COCOResGen, [4], r"gen must be a section of keys, not \[4\]"),
    (COCOResGen, GEN | {"ch": 0}, "gen.ch=0 must be at least 1"),
    (COCOResGen, GEN | {"n_enc_shared_blk": -1}, "gen.n_enc_shared_blk=-1 must be at least 0"),
    (COCOResGen, GEN | {"n_gen_res_blk": 1.5}, "gen.n_gen_res_blk=1.5 must be a whole number"),
    (COCOResGen, GEN | {"res_dropout_ratio": 1}, "gen.res_dropout_ratio=1.0 must be below 1.0"),
    (COCOResGen, GEN | {"res_dropout_ratio": -1}, "gen.res_dropout_ratio=-1.0 must be at least 0"),
    (COCOResGen, GEN | {"n_gen_front_blk": 3}, "front_blk=3 must be n_enc_front_blk=2"),
    (COCODis, SMALL, "dis has no n_layer; it must hold ch, n_layer, input_dim_a, input_dim_b"),
    (COCOMsDis, SMALL | {"n_layer": 0}, "dis.n_layer=0 must be at least 1"),
    (COCODis, SMALL | {"n_layer": True}, "dis.n_layer=True must be a whole number"),
    (COCOMsDis, SMALL | {"n_layers": 2}, "'dis.n_layers' .*did you mean dis.n_layer?"),
    (COCODis, DisOptions(0), "dis.ch=0 must be at least 1"),
    (COCOSharedDis, SMALL | {"n_layer": 2}, "unknown key 'dis.n_layer'"),
    (COCODis, SMALL | {"name": "COCOMsDis"}, "dis.name='COCOMsDis' is not this class, COCODis"),
    (COCOSharedDis, SMALL | {"n_front_layer": 2}, "dis has no n_shared_layer; it must hold"),
]


@pytest.mark.parametrize(("cls", "params", "message"), WRONG, ids=[wrong[2] for wrong in WRONG])
def test_a_wrong_option_is_named_with_the_choices(cls, params, message):
    with pytest.raises(ValueError, match=message):
        cls(params)


@pytest.mark.parametrize(("cls", "params"), PRECISE)
def test_images_of_other_channels_are_refused(cls, params):
    dis = make(cls, params | {"input_dim_a": 1, "input_dim_b": 3})
    gray, color = images(1, 1, 8, 8), images(1, 3, 8, 8)
    for call in (
        lambda: dis(color, color),
        lambda: dis(gray, gray),
        lambda: dis.discriminate_a(color),
        lambda: dis.discriminate_b(color[0]),
    ):
        with pytest.raises(ValueError, match=r"images must be \[N, [13], H, W\] .*not \("):
            call()
