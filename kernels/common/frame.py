"""Haloed channels-last buffers: what one kernel writes so that the next needs no bounds checks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastunit.kernels.common.eager import transformed

MAX_OFFSET = 2**31 - 1  # within a sample offsets are int32


def pitch(channels: int) -> int:
    """Return the channels a pixel occupies in a frame: a multiple of 8, or 4 for up to 4.

    Loads are then 16 (8 for images of up to four channels) bytes wide at 2 bytes a value.
    """
    return 4 if channels <= 4 else -(-channels // 8) * 8


def vector(pitch: int) -> int:
    """Return the values of one wide load, a power of two up to 8, that divide a pitch."""
    return math.gcd(pitch, 8)


def check_offsets(*buffers: Tensor) -> None:
    """Raise ValueError where a sample of a buffer [N, H, W, C] exceeds the kernels' int32."""
    for buffer in buffers:
        shape, stride = buffer.shape[1:], buffer.stride()[1:]
        span = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if span > MAX_OFFSET:
            raise ValueError(
                f"a sample of {tuple(shape)} [H, W, C] spans {span} values, the Triton kernels "
                f"take {MAX_OFFSET}; use smaller images or impl='aten'"
            )


@dataclass(frozen=True)
class Frame:
    """Where the pixels of [N, H, W, C] lie in a buffer [N, height, width, pitch].

    Pixel (h, w) is at (lead + h, lead + w); what surrounds it is a halo made from the image,
    then zeros, as are the channels from C to pitch. `slack` zeroed pixels precede sample 0. What
    writes the image writes all of that.
    """

    lead: int
    height: int
    width: int
    pitch: int
    slack: int = 0

    def empty(self, samples: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the buffer, of like's device and of its dtype or another, without values."""
        shape = (samples, self.height, self.width, self.pitch)
        start = self.slack * self.pitch
        flat = like.new_empty(start + math.prod(shape), dtype=dtype)
        return flat[start:].view(shape)

    def image(self, buffer: Tensor, size: tuple[int, int], channels: int) -> Tensor:
        """Return the view [N, *size, channels] of a buffer that is the image."""
        rows, columns = (slice(self.lead, self.lead + length) for length in size)
        return buffer[:, rows, columns, :channels]


def channels_last(buffer: Tensor) -> Tensor:
    """View a buffer [N, H, W, C] as an image [N, C, H, W]."""
    return buffer.permute(0, 3, 1, 2)


def no_view(y: Tensor) -> Tensor:
    """Return the same memory as a tensor that is no view to autograd.

    What an autograd function returns may only then be changed in place.
    """
    return y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())


def dense(x: Tensor) -> Tensor:
    """View an image [N, C, H, W] as contiguous [N, H, W, C], copying where it is not."""
    return x.permute(0, 2, 3, 1).contiguous()


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """Return channels_last if one of the 4-d tensors is, and could not be called contiguous.

    Under torch.func nobody can say.
    """
    return torch.contiguous_format if transformed() else eager_format(*tensors)


def eager_format(*tensors: Tensor) -> torch.memory_format:
    """Return `memory_format`, where it is known that no transform is around the call."""
    last = torch.channels_last
    for tensor in tensors:
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last):
            return last
    return torch.contiguous_format


def owned(gradient: Tensor, form: torch.memory_format, *others: Tensor) -> Tensor:
    """Return a gradient in a memory format, as a copy if it shares the memory of the others."""
    storage = gradient.untyped_storage()._cdata
    if storage in [other.untyped_storage()._cdata for other in others]:
        return gradient.clone(memory_format=form)
    return gradient.contiguous(memory_format=form)


def laid_out_as(w: Tensor, dw: Tensor) -> Tensor:
    """Return a gradient in its parameter's dtype and strides, as autograd wants to keep it."""
    strides = zip(w.shape, w.stride(), dw.stride(), strict=True)
    if dw.dtype == w.dtype and all(size < 2 or mine == its for size, mine, its in strides):
        return dw
    return torch.empty_like(w).copy_(dw)
