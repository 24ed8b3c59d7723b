"""Where a chain is left as it is, by measurement: on CPUs, where PyTorch's operations are good.

Forward and backward in float32, one thread of a Xeon, torch 2.13 (PyTorch's time over ours): the
5x5 convolution of a 2x upsampled image 1.5 to 1.9 from 64 channels of 64x64 or 128 of 32x32 on, but
0.5 to 1.2 with fewer channels or pixels; a bare convolution 0.8 to 0.9, a convolution with instance
norm and ReLU 0.7 to 1.0, a 3x3 convolution of an upsampled image 0.4 to 1.2.
"""

from __future__ import annotations

from fastunit.fusion.chains import Chain
from fastunit.fusion.operations import hint, tensor

# The least an upsampled convolution must have on a CPU: taps a side, channels, values of the image.
TAPS, CHANNELS, VALUES = 5, 32, 1 << 17


def loss(chain: Chain) -> str | None:
    """Return why a chain is not fused on the device of its image, or None."""
    x = tensor(chain.image)
    if x is None or x.device.type != "cpu":
        return None
    if chain.kind != "upsample":
        return "no faster on a CPU"
    w = tensor(chain.tensors[1])
    assert w is not None
    k, c, rows, columns = map(hint, w.shape)
    values = c * hint(x.shape[0]) * hint(x.shape[2]) * hint(x.shape[3])
    large = min(rows, columns) >= TAPS and min(k, c) >= CHANNELS and values >= VALUES
    return None if large else "too small to be faster on a CPU"
