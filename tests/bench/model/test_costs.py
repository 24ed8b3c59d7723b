"""The work of a training step: FLOPs and bytes, against PyTorch's count and counts by hand."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.model import costs
from bench.ops.layers import Layer, networks
from bench.step.baseline import BaselineStep
from fastunit import config
from fastunit.models.perceptual import Perceptual
from tests.support.benchmarks import SMALL


def release(**keys) -> config.Config:
    """Return the release's 256x256 configuration."""
    return config.from_dict(keys)


def flops(kernels, field="direct") -> float:
    return sum(getattr(kernel, field) for kernel in kernels)


@pytest.mark.parametrize(
    ("network", "direct", "phase"),
    [("encoders", 48.5, 48.5), ("decoders", 93.6, 59.2), ("discriminators", 4.36, 4.36)],
)
def test_networks_have_the_flops_that_were_counted_by_hand(network, direct, phase):
    for found in getattr(networks(release()), network):
        layers = list(chain.from_iterable(found)) if network == "discriminators" else found
        assert sum(layer.flops for layer in layers) / 1e9 == pytest.approx(direct, rel=0.01)
        assert sum(layer.as_run().flops for layer in layers) / 1e9 == pytest.approx(phase, rel=0.01)


@pytest.mark.parametrize(("shared", "direct", "needed"), [(False, 2617, 1930), (True, 2333, 1715)])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_step_has_the_flops_that_were_counted_by_hand(batch, shared, direct, needed):
    kernels = costs.step(release(batch_size=batch, share_fakes=shared))
    assert flops(kernels) / batch / 1e9 == pytest.approx(direct, rel=0.01)
    assert flops(kernels, "needed") / batch / 1e9 == pytest.approx(needed, rel=0.01)


@pytest.mark.parametrize("cycle", [0, 10])
def test_flops_of_a_step_are_those_that_pytorch_counts_in_the_baseline(cycle):
    settings = config.from_dict(SMALL | {"share_fakes": False, "recon_x_cyc_w": cycle})
    images = torch.rand(2, settings.batch_size, 3, *settings.crop)
    with FlopCounterMode(display=False) as counter:
        BaselineStep(settings)(*images)
    # The baseline throws gradients away: of the discriminators' weights in the other update.
    scales = chain.from_iterable(networks(settings).discriminators)
    layers = chain.from_iterable(scales)
    wasted = settings.batch_size * sum(layer.flops for layer in layers)
    assert flops(costs.step(settings)) + wasted == counter.get_total_flops()


def test_flops_of_the_perceptual_term_are_those_that_pytorch_counts():
    plain, perceptual = (
        config.from_dict(SMALL | {"vgg_w": weight, "vgg_model_path": "x"}) for weight in (0, 1)
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Perceptual()
        for _ in range(2):  # domains
            output = torch.empty(perceptual.batch_size, 3, *perceptual.crop, requires_grad=True)
            network(output, output.detach()).backward()
    added = flops(costs.step(perceptual)) - flops(costs.step(plain))
    assert added == counter.get_total_flops()


def test_flops_of_the_identity_term_are_those_that_pytorch_counts():
    plain, identity = (config.from_dict(SMALL | {"identity_w": weight}) for weight in (0, 5))
    a, b = BaselineStep(plain).gen_a, BaselineStep(plain).gen_b
    x_a, x_b = torch.rand(2, identity.batch_size, 3, *identity.crop)
    with FlopCounterMode(display=False) as counter:
        for encoded, decoded, x in ((b, a, x_a), (a, b, x_b)):
            decoded.dec(encoded.enc(x)).sum().backward()
    added = flops(costs.step(identity)) - flops(costs.step(plain))
    assert added == counter.get_total_flops()


def test_shared_decoder_blocks_run_once_over_both_codes():
    apart, shared = (release(share={"enc": 0, "dec": dec}) for dec in (0, 2))
    convolution = 2 * 64**2 * 9 * 256**2
    saved = flops(costs.step(apart)) - flops(costs.step(shared))
    # Two codes, two blocks of two, forward and both products backward.
    assert saved == 2 * 4 * 3 * convolution


def test_parts_of_a_batch_translate_for_themselves():
    whole, parts = (release(batch_size=8 // n, accumulate=n) for n in (1, 4))
    assert flops(costs.step(parts)) == flops(costs.step(release(batch_size=8, share_fakes=False)))
    assert flops(costs.step(whole)) < flops(costs.step(parts))


def test_a_block_moves_the_bytes_that_were_counted_by_hand():
    layer = Layer(256, 256, (64, 64), (64, 64), 3, 1, 1, norm=True)
    run = costs.Run(samples=8, element=2)
    kernels = list(run("block", [layer] * 3, ("dgrad", "wgrad")))
    middle = {kernel.name: kernel.bytes for kernel in kernels[len(kernels) // 3 :][:5]}
    tensor = 8 * 256 * 64**2 * 2
    weights = 9 * 256**2
    forward = middle["fprop"] - 2 * weights + middle["norm_act"]
    backward = middle["dgrad"] - 2 * weights + middle["wgrad"] - 4 * weights
    assert forward / tensor == pytest.approx(4.13, abs=0.01)
    assert (backward + middle["act backward"]) / tensor == pytest.approx(8.38, abs=0.01)


def test_issued_flops_count_the_halo_and_narrow_channels():
    first = Layer(3, 64, (256, 256), (256, 256), 7, 1, 3)
    last = Layer(64, 3, (256, 256), (256, 256), 7, 1, 3)
    inner = Layer(256, 256, (64, 64), (64, 64), 3, 1, 1)
    assert first.issued("fprop") / first.flops == pytest.approx(1.52, abs=0.01)
    assert last.issued("fprop") / last.flops == pytest.approx(5.33, abs=0.01)
    assert inner.issued("dgrad") / inner.flops == pytest.approx(1.063, abs=0.001)
