"""cuDNN's product in place of ours, for layers where it was measured to be faster.

Every convolution of a block is a *valid* convolution of a channels-last frame, which cuDNN can
compute as well; statistics, bias and activation are then passes of their own. `FASTER` is the
whole rule: a layer that is not in it runs on our kernels, and so does every layer as long as
nothing has been measured. It is filled from the GPU report under bench/.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastunit.kernels import runtime, tiles
from fastunit.kernels.frame import dense


class Layer(NamedTuple):
    """What the choice depends on."""

    arch: int  # 80, 90 or 100, see `tiles.generation`
    direction: str  # "fprop", "dgrad" or "wgrad"
    transposed: bool
    channels: int
    channels_out: int
    taps: int  # R, the filter's rows
    stride: int
    pixels: int  # of the result, N * P * Q
    bits: int  # of a value: 16 or 32


FASTER: frozenset[Layer] = frozenset()  # nothing measured yet


class Window(NamedTuple):
    """The image inside a frame [N, height, width, pitch]."""

    first: int  # row and column
    rows: int
    columns: int
    channels: int

    def of(self, frame: Tensor) -> Tensor:
        """Return it as [N, C, H, W], without a copy."""
        rows = slice(self.first, self.first + self.rows)
        columns = slice(self.first, self.first + self.columns)
        return frame[:, rows, columns, : self.channels].permute(0, 3, 1, 2)


class Product(NamedTuple):
    """A block's convolution as cuDNN sees it: from the window x of one frame to y of another."""

    x: Window
    y: Window
    stride: int
    padding: int
    output_padding: int
    transposed: bool

    def is_faster(self, direction: str, frame: Tensor, w: Tensor) -> bool:
        """Return whether cuDNN is, for the frame's samples, dtype and GPU; w [G, K, C, R, S]."""
        if not FASTER:
            return False
        layer = Layer(
            arch=tiles.generation(runtime.arch(frame.device)),
            direction=direction,
            transposed=self.transposed,
            channels=self.x.channels,
            channels_out=self.y.channels,
            taps=w.shape[3],
            stride=self.stride,
            pixels=len(frame) * self.y.rows * self.y.columns,
            bits=8 * frame.element_size(),
        )
        return layer in FASTER

    def fprop(self, xh: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Return [N, P, Q, K], contiguous, for the input's frame."""
        x, w = self.x.of(xh), w.to(xh.dtype)
        b = [None] * len(w) if b is None else b.to(xh.dtype)
        parts = zip(x.chunk(len(w)), w, b, strict=True)
        y = [torch.convolution(*part, **self._options()) for part in parts]
        return dense(torch.cat(y) if len(y) > 1 else y[0])

    def dgrad(self, xh: Tensor, dy: Tensor, w: Tensor) -> Tensor:
        """Return the gradient of the window x, [N, rows, columns, C], for dy in its frame."""
        found = self._backward(xh, dy, w, [True, False, False])
        return dense(torch.cat([dx for dx, _, _ in found]))

    def wgrad(self, xh: Tensor, dy: Tensor, w: Tensor) -> Tensor:
        """Return the gradient of w [G, K, C, R, S]."""
        found = self._backward(xh, dy, w, [False, True, False])
        return torch.stack([dw for _, dw, _ in found])

    def _backward(self, xh: Tensor, dy: Tensor, w: Tensor, mask: list[bool]) -> list[tuple]:
        images = self.y.of(dy).chunk(len(w)), self.x.of(xh).chunk(len(w)), w.to(dy.dtype)
        options = self._options()
        return [
            torch.ops.aten.convolution_backward(*part, None, **options, output_mask=mask)
            for part in zip(*images, strict=True)
        ]

    def _options(self) -> dict[str, object]:
        return {
            "stride": [self.stride] * 2,
            "padding": [self.padding] * 2,
            "dilation": [1, 1],
            "transposed": self.transposed,
            "output_padding": [self.output_padding] * 2,
            "groups": 1,
        }
