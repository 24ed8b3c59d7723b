"""UNIT: unsupervised image-to-image translation, fast and dependable."""

from fastunit.layers import Conv2dBlock, LayerNorm, LinearBlock, ResBlock, ResBlocks
from fastunit.networks import UNIT, MsImageDis, VAEGen

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
