"""The networks for digits: the golden case, and what it does not show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastunit.digits.networks import CoDis32x32, CoVAE32x32

LIMIT = 1e-9  # relative, from golden/README.md


def assert_close(mine, reference, name, limit=LIMIT):
    assert mine.shape == reference.shape, name
    error = ((mine - reference).abs().max() / reference.abs().max()).item()
    assert error < limit, f"{name}: relative error {error:.2e}"


@pytest.fixture
def golden(load_golden):
    meta, arrays = load_golden("digits_covae")
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    gen = CoVAE32x32(meta["gen_ch"], *[meta["input_dim_a"]] * 2, *[meta["input_dim_b"]] * 2)
    dis = CoDis32x32(meta["dis_ch"], meta["input_dim_a"], meta["input_dim_b"])
    return gen.double(), dis.double().eval(), tensors


def group(tensors, prefix):
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def test_golden_state_dicts(golden):
    gen, dis, tensors = golden
    for network, name in ((gen, "gen"), (dis, "dis")):
        reference, mine = group(tensors, f"state/{name}."), network.state_dict()
        assert list(mine) == list(reference)
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in reference.items()}


def test_golden_forward(golden):
    gen, dis, tensors = golden
    gen.load_state_dict(group(tensors, "state/gen."))
    dis.load_state_dict(group(tensors, "state/dis."))
    before = {key: value.clone() for key, value in gen.state_dict().items()}
    x_a, x_b, noise = tensors["x_a"], tensors["x_b"], tensors["noise"]
    outputs = dict(zip(("x_aa", "x_ba", "x_ab", "x_bb"), gen(x_a, x_b, noise)[:4], strict=True))
    gen.load_state_dict(before)
    outputs["mu"], outputs["sd"] = gen(x_a, x_b, noise=noise)[4]
    outputs["kl"] = gen.sample(x_a, x_b, noise)[5][None]
    outputs["dis_out"], outputs["dis_feat_a"], outputs["dis_feat_b"] = dis(x_a, x_b)
    outputs["class_a"], outputs["class_b"] = dis.classify_a(x_a), dis.classify_b(x_b)
    for name, value in outputs.items():
        assert_close(value, tensors[name], name)
    assert set(outputs) | {"x_a", "x_b", "noise"} == {k for k in tensors if "state/" not in k}


def plain_layer(layer, x):
    conv, norm, bias, _ = layer.model
    options = (conv.stride, conv.padding)
    apply = F.conv_transpose2d if isinstance(conv, torch.nn.ConvTranspose2d) else F.conv2d
    y = apply(x, conv.weight, conv.bias, *options)
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0, keepdim=True)
    y = (y - mean) / (variance + norm.eps).sqrt() + bias.bias[:, None, None]
    return torch.where(y > 0, y, 0.01 * y)


def plain_sample(gen, x_a, x_b, noise):
    """The generator written out, with the divergence from its definition."""
    h = torch.cat([plain_layer(gen.g_en_conv0_a, x_a), plain_layer(gen.g_en_conv0_b, x_b)])
    for layer in (gen.g_en_conv1, gen.g_en_conv2, gen.g_en_conv3):
        h = plain_layer(layer, h)
    mu = F.conv2d(h, gen.g_vae.en_mu.weight, gen.g_vae.en_mu.bias)
    sd = F.softplus(F.conv2d(h, gen.g_vae.en_sigma.weight, gen.g_vae.en_sigma.bias))
    kl = (mu**2 + sd**2 - torch.log(sd**2)).sum() / len(mu)
    h = mu + sd * noise
    for layer in (gen.g_de_conv0, gen.g_de_conv1, gen.g_de_conv2):
        h = plain_layer(layer, h)
    for_a, for_b = (
        torch.tanh(F.conv_transpose2d(plain_layer(layer, h), last.weight, last.bias))
        for layer, last in ((gen.g_de_conv3_a, gen.de_conv4_a), (gen.g_de_conv3_b, gen.de_conv4_b))
    )
    n = len(x_a)
    return for_a[:n], for_a[n:], for_b[:n], for_b[n:], kl


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_generator_and_its_gradients_match_the_written_out_form(memory_format):
    gen = CoVAE32x32(3, 1, 1, 2, 2).double().to(memory_format=memory_format)
    for name, parameter in gen.named_parameters():
        if name.endswith("2.bias"):  # the learned biases start at 0
            torch.nn.init.normal_(parameter)
    x_a, x_b = (torch.rand(n, c, 32, 32).double() * 2 - 1 for n, c in ((3, 1), (5, 2)))
    noise = torch.randn(8, 24, 1, 1).double()
    *mine, _, kl = gen.sample(x_a, x_b, noise)
    reference = plain_sample(gen, x_a, x_b, noise)
    weights = [torch.randn_like(y) for y in reference]
    parameters = dict(gen.named_parameters())
    grads = []
    for outputs in ((*mine, kl), reference):
        loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
        grads.append(torch.autograd.grad(loss, list(parameters.values())))
    for name, y, ref in zip(("aa", "ba", "ab", "bb", "kl"), (*mine, kl), reference, strict=True):
        assert_close(y, ref, name)
    largest = max(grad.abs().max() for grad in grads[1])
    for name, grad, ref in zip(parameters, *grads, strict=True):
        # A bias before batch norm has no effect: its gradient is rounding.
        scale = torch.maximum(ref.abs().max(), 1e-6 * largest)
        assert (grad - ref).abs().max() < 1e-7 * scale, name


def test_noise_is_drawn_in_training_only():
    gen = CoVAE32x32(2, 1, 1, 1, 1)
    x = torch.rand(4, 1, 32, 32)
    assert not torch.equal(gen(x, x)[0], gen(x, x)[0])
    gen.eval()
    zero = torch.zeros(8, 16, 1, 1)
    assert torch.equal(gen(x, x)[0], gen(x, x)[0])
    assert torch.equal(gen(x, x)[3], gen(x, x, noise=zero)[3])
    assert not torch.equal(gen(x, x)[0], gen(x, x, noise=zero + 1)[0])


def test_discriminator_runs_each_image_alone():
    dis = CoDis32x32(4, 1, 3).double().eval()
    x_a, x_b = torch.rand(3, 1, 32, 32).double(), torch.rand(2, 3, 32, 32).double()
    logits, features_a, features_b = dis(x_a, x_b)
    assert logits.shape == (5, 2)
    assert features_a.shape == (3, 32, 2, 2) and features_b.shape == (2, 32, 2, 2)
    assert_close(dis(x_a[1:2], x_b[1:])[0], logits[[1, 4]], "logits")
    h = x_b
    for layer in (dis.conv0_b, dis.conv1, dis.conv2, dis.conv3):
        h = layer(h)  # the modules in their own order: convolution, ReLU, pooling
    assert_close(features_b, h, "features")
    assert_close(dis.classify_b(x_b), dis.conv_cl(h).flatten(1), "digits")


def test_dropout_is_on_the_heads_path_in_training_only():
    dis = CoDis32x32(4, 1, 1)
    x = torch.rand(8, 1, 32, 32)
    (first, *features), (again, *same) = dis(x, x), dis(x, x)
    assert not torch.equal(first, again) and torch.equal(features[0], same[0])
    assert not torch.equal(dis.classify_a(x), dis.classify_a(x))
    dis.eval()
    assert torch.equal(dis.classify_a(x), dis.classify_a(x))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((2, 3, 32, 32), r"\[N, 1, H, W\]"),
        ((2, 1, 28, 28), "28x28 pixels do not fit a network for 32x32"),
        ((1, 32, 32), r"\(1, 32, 32\)"),
    ],
)
def test_images_that_do_not_fit(images, words):
    wrong, right = torch.zeros(images), torch.zeros(2, 1, 32, 32)
    gen, dis = CoVAE32x32(1, 1, 1, 1, 1), CoDis32x32(1, 1, 1)
    for call in (gen, dis):
        for pair in ((wrong, right), (right, wrong)):
            with pytest.raises(ValueError, match=words):
                call(*pair)
    for classify in (dis.classify_a, dis.classify_b):
        with pytest.raises(ValueError, match=words):
            classify(wrong)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_sizes_below_one(value):
    with pytest.raises(ValueError, match=f"gen_ch={value!r}"):
        CoVAE32x32(value, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"output_dim_b={value!r}"):
        CoVAE32x32(1, 1, 1, 1, value)
    with pytest.raises(ValueError, match=f"input_dim_b={value!r}"):
        CoDis32x32(1, 1, value)
