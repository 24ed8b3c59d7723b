"""Fused operations on images, one per file; each has a plain ATen implementation."""

from fastunit.kernels.conv_norm_act import conv_norm_act
from fastunit.kernels.norm_act import norm_act
from fastunit.kernels.reparameterize import reparameterize
from fastunit.kernels.upsample_conv import upsample_conv

__all__ = ["conv_norm_act", "norm_act", "reparameterize", "upsample_conv"]
