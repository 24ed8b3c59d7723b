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
    self_labels,
    warmup_losses,
)
from fastunit.digits import CoDis32x32, CoVAE32x32, copy_own_layers
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


def test_a_step_without_any_weight_changes_nothing():
    settings = replace(TINY, **dict.fromkeys(NAMES, 0.0), warmup=1, iterations=2)
    before, (run, _) = Adaptation(settings, 1, CPU), trained(settings)
    old, new = dict(before.dis.named_parameters()), dict(run.dis.named_parameters())
    assert all(torch.equal(value, old[name]) for name, value in new.items())


def test_the_generator_runs_where_a_term_needs_it(monkeypatch):
    calls = []
    monkeypatch.setattr(
        CoVAE32x32, "sample", lambda self, *images: calls.append(1) or fakes(images)
    )

    def fakes(images):
        return (
            *(torch.zeros(4, 1, 32, 32, requires_grad=True) for _ in range(4)),
            None,
            images[0].sum(),
        )

    needed = {"gan_w", "recon_w", "kl_w", "feature_w", "translated_cls_w", "semantic_w"}
    none = dict.fromkeys(NAMES, 0.0)
    for name in NAMES:
        calls.clear()
        _, losses = trained(replace(TINY, iterations=1, **(none | {name: 1.0})))
        assert bool(calls) == (name in needed), name
        assert set(losses[0]) - TOTALS == NAMES[name]


# ---- self-labels


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


def test_self_labels_come_after_the_warm_up_from_the_average():
    settings = replace(
        TINY, self_label_w=1.0, self_label_threshold=0.0, ema_decay=0.9, warmup=1, iterations=3
    )
    run, losses = trained(settings)
    assert "self_label" not in losses[0] and losses[2]["self_label"] > 0
    assert run.judge.training and not equal(run, trained(replace(settings, self_label_w=0))[0])
    strict = trained(replace(settings, self_label_threshold=1.0))[1]
    assert strict[2]["self_label"] == 0
    x_b = normalised(data(1)[0][:4])
    with torch.no_grad():  # unlike the network that is trained, it has no dropout
        names = run.judge.eval().classify_b(x_b).argmax(1)
    run.judge.train()
    assert all(torch.equal(run._names(x_b), names) for _ in range(3))


# ---- start


def test_the_targets_own_layers_start_as_copies():
    own, copy = (Adaptation(replace(TINY, init_b=how), 1, CPU) for how in ("own", "copy"))
    state = copy.gen.state_dict()
    twins = {name: name.replace("_a.", "_b.") for name in state if "_a." in name}
    assert {name.split(".")[0] for name in twins} == {"g_en_conv0_a", "g_de_conv3_a", "de_conv4_a"}
    assert all(torch.equal(state[a], state[b]) for a, b in twins.items())
    assert not torch.equal(*(own.gen.state_dict()[f"g_en_conv0_{x}.model.0.weight"] for x in "ab"))
    for name, value in own.gen.state_dict().items():  # nothing else differs
        assert "_b." in name or torch.equal(value, state[name])
    x = torch.rand(3, 1, 32, 32) * 2 - 1
    x_aa, x_ba, x_ab, x_bb, _ = copy.gen.eval()(x, x)
    assert torch.equal(x_aa, x_ab) and torch.equal(x_ba, x_bb)
    trained_copy, _ = trained(replace(TINY, init_b="copy"))  # independent afterwards
    pair = [trained_copy.gen.state_dict()[f"de_conv4_{x}.weight"] for x in "ab"]
    assert not torch.equal(*pair)


def test_layers_of_other_shapes_keep_their_own_values():
    gen = CoVAE32x32(2, 1, 1, 3, 3)
    before = {name: value.clone() for name, value in gen.state_dict().items()}
    copy_own_layers(gen)
    after = gen.state_dict()
    assert torch.equal(after["g_en_conv0_b.model.0.weight"], before["g_en_conv0_b.model.0.weight"])
    assert torch.equal(after["de_conv4_b.weight"], before["de_conv4_b.weight"])
    assert torch.equal(after["g_de_conv3_b.model.0.weight"], before["g_de_conv3_a.model.0.weight"])


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
