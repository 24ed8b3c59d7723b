"""The objective and the training step of domain adaptation."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from fastunit.adaptation import SOURCE, TARGET, Adaptation, stream
from fastunit.digit_images import normalised
from fastunit.digit_objective import (
    Fakes,
    Settings,
    discriminator_losses,
    generate,
    generator_losses,
)
from fastunit.digits import CoDis32x32, CoVAE32x32
from fastunit.errors import ConfigError
from fastunit.typed import build

CPU = torch.device("cpu")
TINY = Settings(gen_ch=2, dis_ch=2, batch_size=4, iterations=4, lr=1e-3)


# ---- objective


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


def close(mine, reference, limit=1e-6):  # `_judged` and the like continue in float32
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


def test_terms_without_weight_are_left_out(scene):
    gen, dis, x_a, x_b, labels = scene
    fakes = double_fakes(gen, x_a, x_b, None)
    release = Settings()
    assert set(discriminator_losses(dis, release, x_a, x_b, labels, fakes)) == {
        "real_fake", "feature", "classification", "discriminator_total"
    }  # fmt: skip
    assert "semantic" not in generator_losses(dis, release, x_a, x_b, labels, fakes)


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


# ---- step


def data(seed: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (count,), generator=generator)


def trained(settings: Settings, source_only: bool = False) -> tuple[Adaptation, list]:
    run = Adaptation(settings, 1, CPU, source_only)
    labelled = stream(*data(0), settings, SOURCE)
    unlabelled = stream(data(1)[0], None, settings, TARGET)
    losses = []
    for _ in range(settings.iterations):
        (x_a, labels), (x_b, _) = next(labelled), next(unlabelled)
        losses.append(run.advance(x_a, labels, x_b))
    return run, losses


def state(run: Adaptation) -> dict[str, torch.Tensor]:
    networks = {"gen": run.gen, "dis": run.dis, "judge": run.judge}
    return {f"{n}.{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}


def equal(one: Adaptation, other: Adaptation) -> bool:
    one, other = state(one), state(other)
    return all(torch.equal(value, other[name]) for name, value in one.items())


DEFORMED = replace(TINY, rotation=10.0, shift=1.0, ema_decay=0.5)


def test_a_seed_gives_the_same_bits_and_another_does_not():
    run, losses = trained(DEFORMED)
    again, same = trained(DEFORMED)
    assert equal(run, again) and losses == same
    assert not equal(run, trained(replace(DEFORMED, seed=1))[0])


def test_every_network_learns_and_losses_are_finite():
    before = state(Adaptation(TINY, 1, CPU))
    run, losses = trained(TINY)
    after = state(run)
    for name, value in before.items():
        assert not torch.equal(value, after[name]), name
    assert all(loss.isfinite() and not loss.requires_grad for loss in losses[-1].values())
    assert all(p.requires_grad for p in run.dis.parameters())


def test_source_only_trains_the_classifier_alone():
    before, (run, losses) = state(Adaptation(TINY, 1, CPU)), trained(TINY, source_only=True)
    changed = {k.split(".")[1] for k, v in state(run).items() if not torch.equal(v, before[k])}
    assert changed == {"conv0_a", "conv1", "conv2", "conv3", "conv_cl"}
    assert set(losses[0]) == {"classification"}
    assert run.classifier(TARGET) == run.judge.classify_a


def test_a_warm_up_classifies_source_images_by_both_domains_layers():
    settings = replace(SOME, gen_ch=2, dis_ch=2, batch_size=4, iterations=3, warmup=2)
    before, (run, losses) = Adaptation(settings, 1, CPU), trained(settings)
    names = {"classification", "identity_classification", "discriminator_total"}
    assert set(losses[0]) == set(losses[1]) == names < set(losses[2])
    close(losses[0]["discriminator_total"], 3 * losses[0]["classification"]
          + 1.5 * losses[0]["identity_classification"])  # fmt: skip
    warm, _ = trained(replace(settings, iterations=2))
    old, new = state(before), state(warm)
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert changed and all(name.startswith(("dis.", "judge.")) for name in changed)
    assert not any("conv4" in name for name in changed)
    assert {"dis.conv0_a.0.weight", "dis.conv0_b.0.weight"} <= changed
    assert not torch.equal(state(run)["gen.g_vae.en_mu.weight"], old["gen.g_vae.en_mu.weight"])


def test_the_average_follows_the_weights():
    run = Adaptation(replace(TINY, ema_decay=0.75), 1, CPU)
    x, labels = normalised(data(0)[0][:4]), data(0)[1][:4]
    run.advance(x, labels, x)
    first = run.dis.conv_cl.weight.detach().clone()
    assert torch.equal(run.judge.conv_cl.weight, first)
    run.advance(x, labels, x)
    expected = (2 * first + 9 * run.dis.conv_cl.weight) / 11  # (1 + n) / (10 + n), n = 1
    assert torch.allclose(run.judge.conv_cl.weight, expected)
    assert Adaptation(TINY, 1, CPU).judge is not run.judge


def test_the_averages_decay_grows_to_its_limit():
    run = Adaptation(replace(TINY, ema_decay=0.4), 1, CPU)
    x, labels = normalised(data(0)[0][:4]), data(0)[1][:4]
    for decay in (0, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4):
        before = run.judge.conv_cl.weight.detach().clone()
        run.advance(x, labels, x)
        expected = decay * before + (1 - decay) * run.dis.conv_cl.weight
        assert torch.allclose(run.judge.conv_cl.weight, expected), decay


def test_the_rate_falls_to_zero_from_the_share_named():
    run = Adaptation(replace(TINY, iterations=4, decay_from=0.5), 1, CPU)
    x, labels = normalised(data(0)[0][:4]), data(0)[1][:4]
    rates = []
    for _ in range(4):
        run.advance(x, labels, x)
        rates.append({group["lr"] for o in run._optimizers for group in o.param_groups})
    assert rates == [{1e-3}, {1e-3}, {1e-3}, {5e-4}]


def test_accuracy_counts_every_image_and_leaves_training_mode():
    run = Adaptation(TINY, 1, CPU)
    images, _ = data(3, 1101)
    run.judge.eval()
    with torch.no_grad():
        answers = {
            SOURCE: run.judge.classify_a(normalised(images)).argmax(1),
            TARGET: run.judge.classify_b(normalised(images)).argmax(1),
        }
    run.judge.train()
    for domain, right in answers.items():
        wrong = right.clone()
        wrong[1000:] = (wrong[1000:] + 1) % 10
        assert run.accuracy(images, right, domain) == 1
        assert run.accuracy(images, wrong, domain) == 1000 / 1101
    assert run.judge.training


def test_settings_are_refused_by_name():
    for values, words in (
        ({"decay_from": 1.5}, "decay_from=1.5 must be at most 1"),
        ({"geometry": "bow"}, "did you mean 'box'"),
        ({"cls_wt": 1}, "did you mean cls_w"),
        ({"batch_size": 1}, "batch_size=1 must be at least 2"),
        ({"seed": 2**40}, "seed=1099511627776 must be at most 4294967296"),
        ({"gan_w": -1}, "gan_w=-1.0 must be at least 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(Settings, values, "")


@pytest.mark.gpu
def test_a_gpu_learns_the_same_task():
    run = Adaptation(replace(DEFORMED, dis_ch=8, iterations=200), 1, torch.device("cuda", 0))
    images, labels = (value.cuda() for value in data(0))
    for x_a, digits in islice(stream(images, labels, run.settings, SOURCE), 200):
        losses = run.advance(x_a, digits, x_a)
    assert all(loss.isfinite() for loss in losses.values())
    assert run.accuracy(images, labels, SOURCE) > 0.8  # twelve images, learned by heart
