"""Where a chain is left as it is: by measurement on CPUs, by count on GPUs.

CPUs, where PyTorch's operations are good: forward and backward in float32, one thread of a Xeon,
torch 2.13 (PyTorch's time over ours): the 5x5 convolution of a 2x upsampled image 1.5 to 1.9 from
64 channels of 64x64 or 128 of 32x32 on, but 0.5 to 1.2 with fewer channels or pixels; a bare
convolution 0.8 to 0.9, a convolution with instance norm and ReLU 0.7 to 1.0, a 3x3 convolution of
an upsampled image 0.4 to 1.2.

GPUs, which nobody has measured: launches and bytes of a chain's forward and backward in bf16, as
`bench.model.accelerated` counts them, fused / as it was. A 4x4 convolution of stride 2 with leaky
ReLU 13 / 12 launches and 1.9 times the bytes, with instance norm 15 / 12 and 1.7, with both 15 / 19
and 1.1; a transposed one with both 17 / 19 and 0.85. A reflect-padded 4x4 one with leaky ReLU 13 /
15 and 0.86. Filters are laid out anew at each call: a reflect-padded 3x3 convolution with instance
norm and ReLU is 14 / 22 launches, and 0.85, 1.1, 1.6 times the bytes where they have 0.3, 1.1, 4.5
times as many values as its images; a 4x4 one of stride 2 1.5 times where they have 0.7.
"""

from __future__ import annotations

import math

from torch.fx import Node

from fastunit.fusion.chains import Chain
from fastunit.fusion.operations import hint, tensor

# The least an upsampled convolution must have on a CPU: taps a side, channels, values of the image.
TAPS, CHANNELS, VALUES = 5, 32, 1 << 17
# The most values that filters may have on a GPU, by those of the image and of the result: with
# padding that PyTorch makes in passes of its own, and without.
PADDED, UNPADDED = 1.0, 0.25


def loss(chain: Chain) -> str | None:
    """Return why a chain is not fused on the device of its image, or None."""
    x = tensor(chain.image)
    if x is None:
        return None
    return on_cpu(chain) if x.device.type == "cpu" else on_gpu(chain)


def on_cpu(chain: Chain) -> str | None:
    """Return why a chain is not fused on a CPU, or None."""
    if chain.kind != "upsample":
        return "no faster on a CPU"
    x, w = tensor(chain.image), tensor(chain.tensors[1])
    assert x is not None and w is not None
    k, c, rows, columns = map(hint, w.shape)
    values = c * hint(x.shape[0]) * hint(x.shape[2]) * hint(x.shape[3])
    large = min(rows, columns) >= TAPS and min(k, c) >= CHANNELS and values >= VALUES
    return None if large else "too small to be faster on a CPU"


def on_gpu(chain: Chain) -> str | None:
    """Return why a chain is not fused on a GPU, or None."""
    if chain.kind in ("norm", "upsample"):
        return None
    options = chain.options | chain.made
    padded = options.get("pad_mode", "zero") != "zero"
    norm, act = options.keys() & {"norm", "gamma"}, options.keys() & {"act", "residual"}
    if not (padded or (norm and act)):
        return "too little around the convolution to save launches on a GPU"
    images = _values(chain.image) + _values(chain.last)
    if _values(chain.tensors[1]) > (PADDED if padded else UNPADDED) * images:
        return "filters too large for the image to move fewer bytes on a GPU"
    return None


def _values(node: Node) -> int:
    found = tensor(node)
    return 0 if found is None else math.prod(map(hint, found.shape))
