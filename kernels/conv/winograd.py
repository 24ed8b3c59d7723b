"""3x3 convolutions of stride 1 in 4/9 of the products: Winograd's form, for float32 on a CPU.

F(2x2, 3x3) of Lavin and Gray, 2016 (https://arxiv.org/abs/1509.09308): windows of 4x4 pixels, 2
pixels apart, make 2x2 results each. Windows and filters become 16 values, whose products over the
channels are 16 matrix products, and what these give is combined to the results:
``y = A^T [(G w G^T) * (B^T x B)] A``. Filters of upsampling, which have 3x3 taps for each of four
phases (see phases.py), are one such convolution with four times the channels.

Images are transformed a few windows at a time, so that what is between stays in the cache. The
results' rounding errors are below those of oneDNN's direct convolution, whose sums are longer;
those of the filters' gradient are up to three times as large (docs/kernels.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.frame import channels_last
from fastunit.kernels.conv.phases import phase_sums
from fastunit.kernels.conv.plan import Plan

# Below these oneDNN's convolution is the faster. Forward, gradient of the image and of the filters
# took it 1.2, 1.1 and 1.4 times as long with 256 channels and 256 windows, 0.9, 0.8 and 1.1 with
# 64 windows or 128 channels (torch 2.13, a Xeon with AVX-512, two threads).
CHANNELS = 128  # of image and result
FILTERS = 1 << 15  # channels of image times those of result
WINDOWS = 128  # of all images

CACHED = 1 << 17  # windows at a time, times the channels of image and result
SLACK = 4096  # values; see _Memory
Index = tuple[slice, slice, slice]
_ORDER = 0, 1, 2, 3  # of the values of a window, along an axis
_FLIPPED = 3, 1, 2, 0  # those with which flipped filters are multiplied


def pays(plan: Plan, x: Tensor, w: Tensor, size: Sequence[int]) -> bool:
    """Return whether this is the faster way to convolve an image.

    Args:
        plan: what to compute.
        x: the image [N, C, H, W], with the halo that is not zero padding.
        w: filters [G, K, C, R, S].
        size: rows and columns of the image without its halo.
    """
    if x.dtype != torch.float32 or w.dtype != torch.float32 or x.device.type != "cpu":
        return False
    k, c, *taps = w.shape[1:]
    up = plan.kind == "upsample"
    if up:
        fits, k, rows, columns = taps == [5, 5] and plan.padding == 2, 4 * k, *size
    else:
        fits = plan.kind == "conv" and plan.stride == 1 and taps == [3, 3] and plan.padding < 3
        rows, columns = (length + 2 * plan.padding - 2 for length in size)
    # PyTorch puts an object that has `matmul` in this module's place.
    matmul: Any = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    return (
        fits
        and min(c, k) >= CHANNELS
        and c * k >= FILTERS
        and rows % 2 == columns % 2 == 0
        and len(x) // len(w) * rows * columns >= 4 * WINDOWS
        and x.is_contiguous(memory_format=torch.channels_last)
        and matmul.fp32_precision in ("none", "ieee")
    )


class Winograd(NamedTuple):
    """A convolution with filters [K, C, R, S], or upsampling with its four phases.

    Its methods are those of `aten.Direct`; `filters` are w, which is read as it is.
    """

    up: bool  # whether it is upsampling
    padding: int  # of zeros, which x is given without

    def fprop(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Return the result [N, K, P, Q], channels_last."""
        pixels = self._padded(x)
        n, rows, columns = len(x), pixels.shape[1] - 2, pixels.shape[2] - 2
        scale = 2 if self.up else 1
        y, memory = x.new_empty(n, scale * rows, scale * columns, len(w)), _Memory(x)
        filters = self._transformed(w, memory).transpose(1, 2)
        _multiply(pixels, filters, self._by_phase(y), _ORDER, memory, b)
        return channels_last(y)

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, filters: Tensor, mask: list[bool]
    ) -> tuple[Any, Any]:
        """Return the gradients of x and w; None where the mask has False."""
        form = torch.channels_last
        dx = torch.empty_like(x, memory_format=form) if mask[0] else None
        dw = torch.empty_like(w, memory_format=form) if mask[1] else None
        by_phase, memory = self._by_phase(_pixels(dy.contiguous(memory_format=form))), _Memory(x)
        if dx is not None:
            more = 2 - self.padding
            n, rows, columns, *channels = by_phase.shape
            padded = dy.new_zeros(n, rows + 2 * more, columns + 2 * more, *channels)
            padded[:, more : more + rows, more : more + columns] = by_phase
            filters = self._transformed(w, memory)
            _multiply(padded, filters, _pixels(dx), _FLIPPED, memory)
        if dw is not None:
            of_values = _correlate(self._padded(x), by_phase, memory).unflatten(1, (-1, len(w)))
            of_values = of_values.permute(2, 1, 0, 3).flatten(1, 2)  # [K, 16 of each phase, C]
            torch.matmul(self._matrix(w).T, of_values, out=_pixels(dw).flatten(1, 2))
        return dx, dw

    def _padded(self, x: Tensor) -> Tensor:
        """Return x with its zeros, [N, H, W, C]."""
        return _pixels(F.pad(x, (self.padding,) * 4) if self.padding else x)

    def _transformed(self, w: Tensor, memory: _Memory) -> Tensor:
        """Return G w G^T, [16, K, C]; [16, 4 * K, C] of phases, phase by phase."""
        matrix = self._matrix(w)
        found = memory.take("filters", (len(w), len(matrix), w.shape[1]))
        torch.matmul(matrix, _pixels(w).flatten(1, 2), out=found)
        return found.unflatten(1, (-1, 16)).permute(2, 1, 0, 3).flatten(1, 2)

    def _matrix(self, w: Tensor) -> Tensor:
        """Return G on both axes, 16 values of the taps of w, for each phase."""
        axis = w.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        matrix = torch.kron(axis, axis)
        if self.up:
            matrix = (matrix @ phase_sums(w).unflatten(0, (4, 9))).flatten(0, 1)
        return matrix

    def _by_phase(self, y: Tensor) -> Tensor:
        """View an image [N, 2 * P, 2 * Q, K] as [N, P, Q, 2, 2, K] if it was upsampled."""
        if not self.up:
            return y
        return y.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)


def _pixels(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class _Memory:
    """Buffers that are used again for each part of an image, and so stay in the cache.

    They are a little larger than asked for: glibc puts an aligned image where a buffer was only if
    that was larger. With holes of the images' sizes a step at 256x256 took 220 MiB more.
    """

    def __init__(self, like: Tensor) -> None:
        self._like, self._buffers = like, dict[str, Tensor]()

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        count, found = math.prod(shape), self._buffers.get(name)
        if found is None or found.numel() < count:
            found = self._buffers[name] = self._like.new_empty(count + SLACK)
        return found[:count].view(shape)


def _multiply(
    x: Tensor,
    filters: Tensor,
    y: Tensor,
    order: Sequence[int],
    memory: _Memory,
    b: Tensor | None = None,
) -> None:
    """Write to y, [N, P, Q, ...], what filters [16, channels, channels of y] make of x."""
    for of_x, of_y in _parts(y, x.shape[3:].numel() + y.shape[3:].numel()):
        part, windows = y[of_y], _windows(x[of_x], order, memory)
        products = memory.take("products", (*windows.shape[:5], *y.shape[3:]))
        torch.bmm(_matrices(windows), filters, out=_matrices(products))
        _combine(products, part, order, memory)
        if b is not None:
            part += b


def _correlate(x: Tensor, dy: Tensor, memory: _Memory) -> Tensor:
    """Return the gradient of the filters that made dy's result from x, [16, K, C]."""
    channels = dy.shape[3:].numel()
    found = memory.take("filters", (16, channels, x.shape[3])).zero_()
    for of_x, of_y in _parts(dy, x.shape[3] + channels):
        windows, gradients = _windows(x[of_x], _ORDER, memory), _spread(dy[of_y], memory)
        found.baddbmm_(_matrices(gradients).transpose(1, 2), _matrices(windows))
    return found


def _matrices(values: Tensor) -> Tensor:
    """View [4, 4, n, rows, columns, ...] as [16, windows, channels]."""
    return values.flatten(5).flatten(2, 4).flatten(0, 1)


def _parts(y: Tensor, channels: int) -> Iterator[tuple[Index, Index]]:
    """Yield indices of image and result of windows that fit into a processor's cache together."""
    most = max(1, CACHED // channels)
    count, rows, columns = len(y), y.shape[1] // 2, y.shape[2] // 2
    across = min(columns, most)
    down = min(rows, most // across)
    together = max(1, most // (across * down))  # more than one if these are whole images
    for sample in range(0, count, together):
        for row in range(0, rows, down):
            for column in range(0, columns, across):
                bottom, right = 2 * (row + down), 2 * (column + across)
                of = slice(sample, sample + together)
                yield (
                    (of, slice(2 * row, bottom + 2), slice(2 * column, right + 2)),
                    (of, slice(2 * row, bottom), slice(2 * column, right)),
                )


def _windows(x: Tensor, order: Sequence[int], memory: _Memory) -> Tensor:
    """Return B^T x B of windows 2 pixels apart, [4, 4, n, rows, columns, ...]."""
    n, rows, columns = len(x), x.shape[1] // 2 - 1, x.shape[2] // 2 - 1
    of_rows = memory.take("rows", (4, n, rows, *x.shape[2:]))
    _differences([x[:, i : i + 2 * rows : 2] for i in range(4)], of_rows, order)
    found = memory.take("windows", (4, 4, n, rows, columns, *x.shape[3:]))
    pixels = [of_rows[:, :, :, j : j + 2 * columns : 2] for j in range(4)]
    _differences(pixels, found.transpose(0, 1), order)
    return found


def _differences(d: Sequence[Tensor], out: Tensor, order: Sequence[int]) -> None:
    """Write B^T d along an axis; `order` says where each of the four values goes."""
    torch.sub(d[0], d[2], out=out[order[0]])
    torch.add(d[1], d[2], out=out[order[1]])
    torch.sub(d[2], d[1], out=out[order[2]])
    torch.sub(d[1], d[3], out=out[order[3]])


def _combine(products: Tensor, y: Tensor, order: Sequence[int], memory: _Memory) -> None:
    """Write A^T m A to y [n, 2 * rows, 2 * columns, ...] for m [4, 4, n, rows, columns, ...]."""
    rows, columns = products.shape[3:5]
    of_rows = memory.take("rows", (2, *products.shape[1:]))
    _sums(products, of_rows, order)
    squares = y.unflatten(2, (columns, 2)).unflatten(1, (rows, 2)).movedim((2, 4), (0, 1))
    _sums(of_rows.transpose(0, 1), squares.transpose(0, 1), order)


def _sums(m: Tensor, out: Tensor, order: Sequence[int]) -> None:
    """Write A^T m along the first axis."""
    first, second, third, fourth = (m[place] for place in order)
    torch.add(first, second, out=out[0])
    out[0] += third
    torch.sub(second, third, out=out[1])
    out[1] -= fourth


def _spread(dy: Tensor, memory: _Memory) -> Tensor:
    """Return A dy A^T, [4, 4, n, rows, columns, ...], for dy [n, 2 * rows, 2 * columns, ...]."""
    n, rows, columns = len(dy), dy.shape[1] // 2, dy.shape[2] // 2
    of_rows = memory.take("rows", (4, n, rows, *dy.shape[2:]))
    _spread_axis(dy[:, ::2], dy[:, 1::2], of_rows)
    found = memory.take("products", (4, 4, n, rows, columns, *dy.shape[3:]))
    _spread_axis(of_rows[:, :, :, ::2], of_rows[:, :, :, 1::2], found.transpose(0, 1))
    return found


def _spread_axis(even: Tensor, odd: Tensor, out: Tensor) -> None:
    out[0].copy_(even)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.neg(odd, out=out[3])
