"""Fused operations on images: Triton kernels, and the same operations on PyTorch's kernels.

`noise_state` makes the state that `reparameterize` draws from.
"""

from fastunit.kernels.common import optional_triton
from fastunit.kernels.conv import flops
from fastunit.kernels.conv.api import conv_gemm, conv_norm_act, conv_transpose, upsample_conv
from fastunit.kernels.norm_act.op import instance_norm_act, norm_act
from fastunit.kernels.sampling.philox import noise_state
from fastunit.kernels.sampling.reparameterize import reparameterize

optional_triton.finish()
flops.register()

__all__ = [
    "conv_gemm",
    "conv_norm_act",
    "conv_transpose",
    "instance_norm_act",
    "noise_state",
    "norm_act",
    "reparameterize",
    "upsample_conv",
]
