"""What a layer of a large picture holds: rows kept in memory or in a file, normalised as read."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastunit.kernels.conv.plan import Plan
from fastunit.kernels.norm_act.aten import activate
from fastunit.models.chain import Weights


class Shape(NamedTuple):
    """The size of a layer's image."""

    channels: int
    height: int
    width: int


class Rows(Protocol):
    """An image [1, C, H, W] that is read by rows."""

    @property
    def shape(self) -> Shape:
        """The image's size."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [1, C, stop - start, W], channels_last; the caller may change them."""
        ...


class Picture:
    """The network's input: a function that gives its rows, repeated to a larger size.

    Args:
        read: returns rows [1, C, stop - start, W] for (start, stop), which it may own.
        size: the picture's channels, height and width.
        height: of the extended image, at least the picture's; the last row is repeated.
        width: likewise.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], size: Shape, height: int, width: int
    ) -> None:
        self._read, self._size = read, size
        self.shape = Shape(size.channels, height, width)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows, the last one and the last column repeated beyond the picture."""
        last = self._size.height - 1
        first = min(start, last)
        x = self._read(first, min(stop, last + 1))
        more = self.shape.width - self._size.width, stop - start - x.shape[2]
        if any(more):
            x = torch.nn.functional.pad(x, (0, more[0], 0, more[1]), mode="replicate")
        return x.clone(memory_format=torch.channels_last)


class MemoryLevel:
    """Rows in one tensor [H, W, C]."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self._rows = torch.empty(
            shape.height, shape.width, shape.channels, dtype=dtype, device=device
        )

    def write(self, start: int, rows: Tensor) -> None:
        """Keep rows [1, C, h, W] from row `start` on."""
        self._rows[start : start + rows.shape[2]] = rows[0].permute(1, 2, 0)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of rows, [1, C, stop - start, W]."""
        return self._rows[start:stop].clone().permute(2, 0, 1)[None]


class FileLevel:
    """Rows in a temporary file without a name, which ends with this object.

    Raises:
        OSError: the file cannot be made or written, for instance for want of space.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self._dtype, self._device = shape, dtype, device
        self._row = shape.width * shape.channels * dtype.itemsize
        self._file: Any = tempfile.TemporaryFile(prefix="fastunit-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def write(self, start: int, rows: Tensor) -> None:
        """Keep rows [1, C, h, W] from row `start` on."""
        values = rows[0].permute(1, 2, 0).contiguous().cpu()
        self._file.seek(start * self._row)
        self._file.write(values.view(torch.uint8).numpy().data)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows, [1, C, stop - start, W]."""
        data = torch.empty((stop - start) * self._row, dtype=torch.uint8)
        self._file.seek(start * self._row)
        if self._file.readinto(data.numpy().data) != len(data):
            raise OSError(f"rows {start} to {stop} were not written")
        rows = data.view(self._dtype).view(stop - start, self.shape.width, self.shape.channels)
        return rows.to(self._device).permute(2, 0, 1)[None]


Level = MemoryLevel | FileLevel


@dataclass(frozen=True)
class Layer:
    """A layer's result: its convolution's, normalised, activated and added to as it is read."""

    product: Rows
    plan: Plan
    mean: Tensor | None = None  # [1, C, 1, 1] in at least fp32; None without norm
    scale: Tensor | None = None  # likewise
    shift: Tensor | None = None  # likewise; None: 0
    residual: Rows | None = None

    @property
    def shape(self) -> Shape:
        """The image's size."""
        return self.product.shape

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows [1, C, stop - start, W] in the dtype of the product."""
        x = self.product.read(start, stop)
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.mean is not None and self.scale is not None:
            y = y.sub_(self.mean).mul_(self.scale)
        if self.shift is not None:
            y = y.add_(self.shift)
        y = activate(y, self.plan.norm_act, None, True)
        if self.residual is not None:
            y = y.add_(self.residual.read(start, stop))
        return y.to(x.dtype)


class Statistics:
    """Mean and spread of a layer's channels, merged over strips in float64 (Chan et al. 1983)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._m2 = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Count rows [1, C, h, W] of any floating dtype."""
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        count = x.shape[2] * x.shape[3]
        near = x.mean((0, 2, 3), keepdim=True)
        x = x - near
        rest = x.mean((0, 2, 3), keepdim=True)  # the mean's rounding
        m2 = x.sub_(rest).square_().sum((0, 2, 3)).double()
        mean = (near.double() + rest.double()).flatten()
        if not self._count:
            self._count, self._mean, self._m2 = count, mean, m2
            return
        total, apart = self._count + count, mean - self._mean
        self._m2 = self._m2 + m2 + apart.square() * (self._count * count / total)
        self._mean = self._mean + apart * (count / total)
        self._count = total

    def layer(self, product: Level, plan: Plan, weights: Weights, residual: Level | None) -> Layer:
        """Return the layer whose convolution gave `product`, normalised as its plan says."""
        if plan.norm == "none":
            return Layer(product, plan, residual=residual)
        mean, m2 = self._mean, self._m2
        if plan.norm == "in":
            scale = (m2 / self._count + plan.eps).rsqrt()
        else:  # over all channels; the unbiased deviation, to which eps is added
            middle = mean.mean()
            total = m2.sum() + self._count * (mean - middle).square().sum()
            deviation = (total / (self._count * len(mean) - 1)).sqrt()
            scale, mean = (1 / (deviation + plan.eps)).expand_as(mean), middle.expand_as(mean)
        gamma, beta = weights.gamma, weights.beta
        scale = scale if gamma is None else scale * gamma.double()
        mean, scale, shift = (_channels(each, weights.weight) for each in (mean, scale, beta))
        return Layer(product, plan, mean, scale, shift, residual)


def _channels(value: Tensor | None, like: Tensor) -> Tensor | None:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return None if value is None else value.to(dtype).view(1, -1, 1, 1)
