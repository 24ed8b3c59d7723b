"""Fused operations on images, a public function per file: Triton kernels with plain ATen twins."""

from fastunit.kernels.conv_gemm import conv_gemm
from fastunit.kernels.conv_norm_act import conv_norm_act
from fastunit.kernels.conv_transpose import conv_transpose
from fastunit.kernels.instance_norm_act import instance_norm_act
from fastunit.kernels.norm_act import norm_act
from fastunit.kernels.reparameterize import reparameterize
from fastunit.kernels.upsample_conv import upsample_conv

__all__ = [
    "conv_gemm",
    "conv_norm_act",
    "conv_transpose",
    "instance_norm_act",
    "norm_act",
    "reparameterize",
    "upsample_conv",
]
