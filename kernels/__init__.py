"""Fused operations on images: Triton kernels with plain ATen twins."""

from fastunit.kernels.conv.api import conv_gemm, conv_norm_act, conv_transpose, upsample_conv
from fastunit.kernels.norm_act.op import instance_norm_act, norm_act
from fastunit.kernels.sampling.reparameterize import reparameterize

__all__ = [
    "conv_gemm",
    "conv_norm_act",
    "conv_transpose",
    "instance_norm_act",
    "norm_act",
    "reparameterize",
    "upsample_conv",
]
