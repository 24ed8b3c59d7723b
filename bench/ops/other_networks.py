"""Other projects' networks, as large as in their papers: what is measured and counted of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tests.support import networks

CASES: dict[str, Callable[[], nn.Module]] = {
    "CycleGAN generator": lambda: networks.CycleGenerator(64, 9),
    "CUT generator": lambda: networks.CutGenerator(64, 9),
    "PatchGAN": lambda: networks.PatchGan(64),
    "pix2pix U-Net": lambda: networks.Unet(64, 6),
    "UNIT generator": lambda: networks.UnitGenerator(64, 4),
    "UNIT discriminator": lambda: networks.UnitDiscriminator(64, 3),
    "MUNIT AdaINGen": lambda: networks.MunitGenerator(64, 4),
    "nnU-Net": lambda: networks.NnUnet(32),
    "PatchGAN of 16": lambda: networks.PatchGan(16),
    "UNIT generator of 16": lambda: networks.UnitGenerator(16, 4),
    "MUNIT AdaINGen of 32": lambda: networks.MunitGenerator(32, 4),
}


def tensors(y: object) -> list[Tensor]:
    """Return the tensors of a network's result, which may be nested."""
    if isinstance(y, Tensor):
        return [y]
    assert isinstance(y, (tuple, list))
    return [tensor for part in y for tensor in tensors(part)]
