"""The objective of domain adaptation: each term, and what is not computed without a weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastunit.digits.networks import CoDis32x32, CoVAE32x32
from fastunit.digits.objective import (
    Fakes,
    Settings,
    discriminator_losses,
    generate,
    generator_losses,
    self_labels,
    warmup_losses,
)


@pytest.fixture
def scene():
    """Return networks in float64, without dropout, images of both domains and a's labels."""
    gen, dis = CoVAE32x32(2, 1, 1, 1, 1).double(), CoDis32x32(2, 1, 1).double().eval()
    x_a, x_b = (torch.rand(n, 1, 32, 32).double() * 2 - 1 for n in (3, 5))
    return gen, dis, x_a, x_b, torch.tensor([7, 0, 9])


def double_fakes(gen, x_a, x_b, noise) -> Fakes:
    """`generate` returns float32; the references are in float64."""
    *images, _, kl = gen.sample(x_a, x_b, noise)
    return Fakes(*images, kl)


def nll(logits, classes) -> torch.Tensor:
    """Cross-entropy from its definition."""
    return -(logits.softmax(1)[range(len(logits)), classes]).log().mean()


def close(mine, reference, limit=1e-6):  # `_adversarial` and the like continue in float32
    assert mine.item() == pytest.approx(reference.item(), rel=limit)


SOME = Settings(
    gan_w=0.7, recon_w=0.03, kl_w=0.2, feature_w=0.05, cls_w=3.0,
    translated_cls_w=2.0, identity_cls_w=1.5, semantic_w=0.4,
)  # fmt: skip


def test_discriminator_losses(scene):
    gen, dis, x_a, x_b, labels = scene
    fakes = double_fakes(gen, x_a, x_b, torch.randn(8, 16, 1, 1).double())
    mine = discriminator_losses(dis, SOME, x_a, x_b, labels, fakes)
    real, _, _ = dis(x_a, x_b)
    translated, of_ba, of_ab = dis(fakes.ba, fakes.ab)
    reconstructed, of_aa, of_bb = dis(fakes.aa, fakes.bb)
    close(mine["real_fake"], nll(real, 1) + (nll(translated, 0) + nll(reconstructed, 0)) / 2)
    feature = ((of_ab - of_aa) ** 2).flatten(1).sum(1).mean()
    feature = feature + ((of_ba - of_bb) ** 2).flatten(1).sum(1).mean()
    close(mine["feature"], feature)
    close(mine["classification"], nll(dis.classify_a(x_a), labels))
    close(mine["translated_classification"], nll(dis.classify_b(fakes.ab), labels))
    close(mine["identity_classification"], nll(dis.classify_b(x_a), labels))
    weights = {"real_fake": 0.7, "feature": 0.05, "classification": 3}
    weights |= {"translated_classification": 2, "identity_classification": 1.5}
    close(mine["discriminator_total"], sum(w * mine[name] for name, w in weights.items()))


def test_generator_losses(scene):
    gen, dis, x_a, x_b, labels = scene
    noise = torch.randn(8, 16, 1, 1).double()
    fakes = double_fakes(gen, x_a, x_b, noise)
    mine = generator_losses(dis, SOME, x_a, x_b, labels, fakes)
    translated, reconstructed = dis(fakes.ba, fakes.ab)[0], dis(fakes.aa, fakes.bb)[0]
    close(mine["adversarial"], nll(translated, 1) + nll(reconstructed, 1))
    errors = ((fakes.aa - x_a) ** 2).sum((1, 2, 3)).mean()
    close(mine["reconstruction"], errors + ((fakes.bb - x_b) ** 2).sum((1, 2, 3)).mean())
    mu, sd = gen(x_a, x_b, noise)[4]
    close(mine["kl"], 2 * (mu**2 + sd**2 - (sd**2).log()).sum() / 8)
    close(mine["semantic"], nll(dis.classify_b(fakes.ab), labels))
    weights = {"adversarial": 0.7, "reconstruction": 0.03, "kl": 0.2, "semantic": 0.4}
    close(mine["generator_total"], sum(w * mine[name] for name, w in weights.items()))


NAMES = {
    "gan_w": {"real_fake", "adversarial"}, "recon_w": {"reconstruction"}, "kl_w": {"kl"},
    "feature_w": {"feature"}, "cls_w": {"classification"},
    "translated_cls_w": {"translated_classification"},
    "identity_cls_w": {"identity_classification"}, "semantic_w": {"semantic"},
    "self_label_w": {"self_label"},
}  # fmt: skip
TOTALS = {"discriminator_total", "generator_total"}
FOUND = torch.tensor([3, -1, 0, -1, 8])


def both_losses(scene, settings: Settings) -> dict[str, torch.Tensor]:
    gen, dis, x_a, x_b, labels = scene
    fakes = double_fakes(gen, x_a, x_b, torch.zeros(8, 16, 1, 1).double())
    losses = discriminator_losses(dis, settings, x_a, x_b, labels, fakes, FOUND)
    return losses | generator_losses(dis, settings, x_a, x_b, labels, fakes)


@pytest.mark.parametrize("weight", NAMES)
def test_a_term_without_weight_is_neither_computed_nor_missed(scene, weight):
    settings = replace(SOME, self_label_w=0.9)
    every = both_losses(scene, settings)
    assert set(every) == TOTALS.union(*NAMES.values())
    losses = both_losses(scene, replace(settings, **{weight: 0}))
    assert set(losses) == set(every) - NAMES[weight]
    for name in set(losses) - TOTALS:  # what is left does not depend on it
        close(losses[name], every[name])


@pytest.mark.parametrize("weight", NAMES)
def test_one_weight_alone_is_its_own_objective(scene, weight):
    every = both_losses(scene, replace(SOME, self_label_w=0.9))
    none = Settings(**dict.fromkeys(NAMES, 0.0))
    losses = both_losses(scene, replace(none, **{weight: 2.0}))
    assert set(losses) == TOTALS | NAMES[weight]
    for name in NAMES[weight]:
        close(losses[name], every[name])
    total = sum(losses[name] for name in TOTALS)
    close(total, 2 * sum(losses[name] for name in NAMES[weight]))


def seen(dis: CoDis32x32, run) -> dict[str, int]:
    """Return how many images each of the discriminator's layers sees in a call of `run`."""
    counts: dict[str, int] = {}

    def count(name):
        def hook(module, args):
            counts[name] = counts.get(name, 0) + len(args[0])

        return hook

    layers = {name: module[0] for name, module in dis.named_children() if "conv4" not in name
              and "conv_cl" not in name}  # fmt: skip
    hooks = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    run()
    for hook in hooks:
        hook.remove()
    return counts


def test_the_discriminator_sees_no_image_that_no_term_needs(scene):
    _, dis, *_ = scene  # 3 images of a, 5 of b

    def images(**weights: float) -> dict[str, int]:
        none = Settings(**dict.fromkeys(NAMES, 0.0))
        return seen(dis, lambda: both_losses(scene, replace(none, **weights)))

    def shared(count: int) -> dict[str, int]:
        return dict.fromkeys(("conv1", "conv2", "conv3"), count)

    assert images() == {}
    assert images(recon_w=1, kl_w=1) == {}
    assert images(cls_w=1) == {"conv0_a": 3} | shared(3)
    assert images(identity_cls_w=1) == {"conv0_b": 3} | shared(3)
    assert images(self_label_w=1) == {"conv0_b": 5} | shared(5)
    assert images(semantic_w=1) == {"conv0_b": 3} | shared(3)
    assert images(feature_w=1) == {"conv0_a": 8, "conv0_b": 8} | shared(16)
    release = images(gan_w=1, cls_w=1, feature_w=1)
    without = images(gan_w=1, cls_w=1)
    assert {k: release[k] - without[k] for k in release} == {
        "conv0_a": 0, "conv0_b": 0, **shared(16)
    }  # fmt: skip


def test_losses_of_a_warm_up_need_no_weight_either(scene):
    _, dis, x_a, _, labels = scene
    none = Settings(**dict.fromkeys(NAMES, 0.0))
    assert set(warmup_losses(dis, none, x_a, labels)) == {"discriminator_total"}
    losses = warmup_losses(dis, replace(none, identity_cls_w=1.5), x_a, labels)
    assert set(losses) == {"identity_classification", "discriminator_total"}
    close(losses["discriminator_total"], 1.5 * nll(dis.classify_b(x_a), labels))


def test_self_labels_are_confident_names(scene):
    _, dis, _, x_b, _ = scene
    with torch.no_grad():
        dis.conv_cl.weight.mul_(30)
        shares = dis.classify_b(x_b).softmax(1).max(1)
    middle = shares.values.median().item()
    found = self_labels(dis, x_b, middle)
    kept = shares.values.float() >= middle
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(found[kept], shares.indices[kept]) and (found[~kept] == -1).all()
    assert not found.requires_grad
    assert torch.equal(self_labels(dis, x_b, 0), shares.indices)


def test_the_self_label_term_is_that_of_the_named(scene):
    gen, dis, x_a, x_b, labels = scene
    fakes = double_fakes(gen, x_a, x_b, None)
    only = replace(Settings(**dict.fromkeys(NAMES, 0.0)), self_label_w=0.5)
    kept = FOUND >= 0
    losses = discriminator_losses(dis, only, x_a, x_b, labels, fakes, FOUND)
    expected = nll(dis.classify_b(x_b)[kept], FOUND[kept]) * kept.sum() / len(FOUND)
    close(losses["self_label"], expected)
    close(losses["discriminator_total"], expected / 2)
    nobody = torch.full_like(FOUND, -1)
    losses = discriminator_losses(dis, only, x_a, x_b, labels, fakes, nobody)
    assert losses["self_label"] == 0
    losses["discriminator_total"].backward()
    assert not any(p.grad.any() for p in dis.parameters() if p.grad is not None)


def test_the_discriminators_loss_leaves_the_generator_alone(scene):
    gen, dis, x_a, x_b, labels = scene
    fakes = double_fakes(gen, x_a, x_b, None)
    discriminator_losses(dis, SOME, x_a, x_b, labels, fakes)["discriminator_total"].backward()
    assert all(p.grad is None for p in gen.parameters())
    assert all(p.grad is not None and p.grad.any() for p in dis.parameters())


def test_generated_images_are_those_of_the_network(scene):
    gen, _, x_a, x_b, _ = scene
    noise = torch.randn(8, 16, 1, 1).double()
    fakes, direct = generate(gen, x_a, x_b, noise), gen(x_a, x_b, noise)
    for mine, reference in zip(fakes[:4], direct[:4], strict=True):
        assert mine.dtype == torch.float32 and torch.allclose(mine, reference.float())
