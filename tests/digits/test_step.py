"""The training step of domain adaptation."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from fastunit.common.errors import ConfigError
from fastunit.config.fields import build
from fastunit.digits.images import Stream, normalised
from fastunit.digits.networks import CoVAE32x32, copy_own_layers
from fastunit.digits.objective import Settings
from fastunit.digits.step import SOURCE, TARGET, Adaptation

CPU = torch.device("cpu")
TINY = Settings(gen_ch=2, dis_ch=2, batch_size=4, iterations=4, lr=1e-3)
NO_WEIGHT = {spec.name: 0.0 for spec in fields(Settings) if spec.name.endswith("_w")}


# ---- step


def data(seed: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (count,), generator=generator)


def stream(images: torch.Tensor, settings: Settings) -> Stream:
    return Stream(images, settings.batch_size, settings.seed, **settings.deformation)


def trained(settings: Settings, source_only: bool = False) -> tuple[Adaptation, list]:
    run = Adaptation(settings, 1, CPU, source_only)
    (images, labels), losses = data(0), []
    source, target = stream(images, settings), stream(data(1)[0], settings)
    for _ in range(settings.iterations):
        (x_a, index), (x_b, _) = next(source), next(target)
        losses.append(run.advance(x_a, labels[index], x_b))
    return run, losses


def state(run: Adaptation) -> dict[str, torch.Tensor]:
    networks = {"gen": run.gen, "dis": run.dis, "judge": run.evaluated}
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
    assert run.classifier(TARGET) == run.evaluated.classify_a


def test_a_warm_up_classifies_source_images_by_both_domains_layers():
    settings = replace(TINY, cls_w=3.0, identity_cls_w=1.5, iterations=3, warmup=2)
    before, (run, losses) = Adaptation(settings, 1, CPU), trained(settings)
    names = {"classification", "identity_classification", "discriminator_total"}
    assert set(losses[0]) == set(losses[1]) == names < set(losses[2])
    one, other = losses[0]["classification"], losses[0]["identity_classification"]
    assert losses[0]["discriminator_total"].item() == pytest.approx((3 * one + 1.5 * other).item())
    warm, _ = trained(replace(settings, iterations=2))
    old, new = state(before), state(warm)
    changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
    assert changed and all(name.startswith(("dis.", "judge.")) for name in changed)
    assert not any("conv4" in name for name in changed)
    assert {"dis.conv0_a.0.weight", "dis.conv0_b.0.weight"} <= changed
    assert not torch.equal(state(run)["gen.g_vae.en_mu.weight"], old["gen.g_vae.en_mu.weight"])


def test_the_average_follows_the_weights_and_soon_forgets_the_start():
    run = Adaptation(replace(TINY, ema_decay=0.3), 1, CPU)
    x, labels = normalised(data(0)[0][:4]), data(0)[1][:4]
    assert torch.equal(run.evaluated.conv_cl.weight, run.dis.conv_cl.weight)
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3):
        before = run.evaluated.conv_cl.weight.clone()
        run.advance(x, labels, x)
        expected = decay * before + (1 - decay) * run.dis.conv_cl.weight
        assert torch.allclose(run.evaluated.conv_cl.weight, expected), decay
    assert Adaptation(TINY, 1, CPU).evaluated is not run.evaluated


def test_the_rate_falls_to_zero_from_the_share_named():
    run = Adaptation(replace(TINY, iterations=4, decay_from=0.5), 1, CPU)
    x, labels = normalised(data(0)[0][:4]), data(0)[1][:4]
    rates = []
    for _ in range(4):
        run.advance(x, labels, x)
        rates.append({group["lr"] for o in run.optimizers for group in o.param_groups})
    assert rates == [{1e-3}, {1e-3}, {1e-3}, {5e-4}]


def test_accuracy_counts_every_image_and_leaves_training_mode():
    run = Adaptation(TINY, 1, CPU)
    images, _ = data(3, 1101)
    run.evaluated.eval()
    with torch.no_grad():
        answers = {
            SOURCE: run.evaluated.classify_a(normalised(images)).argmax(1),
            TARGET: run.evaluated.classify_b(normalised(images)).argmax(1),
        }
    run.evaluated.train()
    for domain, right in answers.items():
        wrong = right.clone()
        wrong[1000:] = (wrong[1000:] + 1) % 10
        assert run.accuracy(images, right, domain) == 1
        assert run.accuracy(images, wrong, domain) == 1000 / 1101
    assert run.evaluated.training


def test_a_step_without_any_weight_changes_nothing():
    settings = replace(TINY, **NO_WEIGHT, warmup=1, iterations=2)
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
    for name in NO_WEIGHT:
        calls.clear()
        trained(replace(TINY, iterations=1, **(NO_WEIGHT | {name: 1.0})))
        assert bool(calls) == (name in needed), name


def test_self_labels_come_after_the_warm_up_from_the_average():
    settings = replace(
        TINY, self_label_w=1.0, self_label_threshold=0.0, ema_decay=0.9, warmup=1, iterations=3
    )
    run, losses = trained(settings)
    assert "self_label" not in losses[0] and losses[2]["self_label"] > 0
    assert run.evaluated.training and not equal(run, trained(replace(settings, self_label_w=0))[0])
    strict = trained(replace(settings, self_label_threshold=1.0))[1]
    assert strict[2]["self_label"] == 0
    x_b = normalised(data(1)[0][:4])
    with torch.no_grad():  # unlike the network that is trained, it has no dropout
        names = run.evaluated.eval().classify_b(x_b).argmax(1)
    run.evaluated.train()
    assert all(torch.equal(run._pseudo_labels(x_b), names) for _ in range(3))


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
    source = stream(images, run.settings)
    for _ in range(200):
        x_a, index = next(source)
        losses = run.advance(x_a, labels[index], x_a)
    assert all(loss.isfinite() for loss in losses.values())
    assert run.accuracy(images, labels, SOURCE) > 0.8  # twelve images, learned by heart
