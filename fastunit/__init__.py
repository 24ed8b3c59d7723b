"""UNIT: unsupervised image-to-image translation, fast and dependable."""

from fastunit.layers import Conv2dBlock, LayerNorm, LinearBlock, ResBlock, ResBlocks
from fastunit.networks import MsImageDis, VAEGen
from fastunit.unit import UNIT

__all__ = [
    "UNIT",
    "Conv2dBlock",
    "LayerNorm",
    "LinearBlock",
    "MsImageDis",
    "ResBlock",
    "ResBlocks",
    "VAEGen",
]
