"""Each layer of the release's networks: ``pytest bench/ops/bench_layers.py [--full]``.

"eager" is the layer of bench/step/baseline.py on contiguous images, "ours" fastunit's on
channels_last ones. Forward and backward of one image of 128x128; with --full or on a GPU 256x256.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.ops import harness
from bench.step.baseline import BaselineStep
from bench.step.tasks import GPU
from fastunit import config
from fastunit.common import precision
from fastunit.models.unit import UNIT

NAMES = (
    "first 7x7", "down 1", "down 2", "residual block", "up 1", "up 2", "last 7x7",
    "discriminator 1", "discriminator 2", "discriminator 3", "discriminator 4",
)  # fmt: skip


SIZES = [256] if GPU else [128, pytest.param(256, marks=pytest.mark.full)]


@pytest.mark.parametrize("mode", ["both"])
@pytest.mark.parametrize("implementation", ["eager", "ours"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def bench_layers(benchmark, device, size, name, implementation, mode):
    crop = {"crop_image_height": size, "crop_image_width": size}
    settings = config.from_dict(crop)
    if implementation == "ours":
        networks = UNIT(settings).to(device, memory_format=torch.channels_last)
        found = dict(_ours(networks))
        compute = precision.resolve("auto", device)
    else:
        networks = BaselineStep(settings).to(device)
        found = dict(_theirs(networks))
        compute = "inherit"
    layer = found[name]
    x = _input(found, name, torch.rand(1, 3, size, size, device=device))
    if implementation == "ours":
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()

    def run() -> Tensor:
        with precision.autocast(compute, device):
            return layer(x)

    harness.measure(benchmark, device, mode, run, [x, *layer.parameters()])


@torch.no_grad()
def _input(layers: dict[str, nn.Module], name: str, image: Tensor) -> Tensor:
    """Return a layer's input for an image; the first discriminator layer gets the image itself."""
    x = image
    for other, layer in layers.items():
        if other == "discriminator 1":
            x = image
        if other == name:
            return x.clone()
        x = layer(x)
    raise KeyError(name)


def _ours(unit: UNIT) -> Iterator[tuple[str, nn.Module]]:
    encoder, decoder = unit.gen_a.enc.model, unit.gen_a.dec.model
    upsampled = [layer for layer in decoder[1:] if not isinstance(layer, nn.Identity)]
    return _named(encoder[:3], encoder[3].model[0], upsampled, unit.dis_a)


def _theirs(step: BaselineStep) -> Iterator[tuple[str, nn.Module]]:
    encoder, decoder = step.gen_a.enc.model, step.gen_a.dec.model
    upsampled = [nn.Sequential(*decoder[1:3]), nn.Sequential(*decoder[3:5]), decoder[5]]
    return _named(encoder[:3], encoder[3].model[0], upsampled, step.dis_a)


def _named(down: Any, block: nn.Module, up: Any, dis: nn.Module) -> Iterator[tuple]:
    return zip(NAMES, [*down, block, *up, *dis.cnns[0][:4]], strict=True)
