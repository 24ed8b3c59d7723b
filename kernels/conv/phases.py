"""Nearest 2x upsampling and an R x S convolution as one transposed convolution of stride 2.

Repeating pixels is itself a transposed convolution with a 2x2 filter of ones, so the two make
one with (R+1) x (S+1) filters: four phases of ceil((R+1)/2) x ceil((S+1)/2) taps on the small
image, 36 products for 4 pixels where 5x5 filters take 100. Zero and replicate padding of the
large image are the same padding of the small one. So is reflect padding by 1; by 2, a pixel off
the border is the repeated neighbour of the one that replication gives, and the difference is
four lines of the result, the *border correction*: a convolution along each border of upsampled
differences with the filters' first or last row or column.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastunit.kernels.common.frame import channels_last
from fastunit.kernels.conv.plan import Kind

REFLECT_LIMIT = 2  # pixels of reflect padding for which the border correction is exact


def upsampling(padding: int, pad_mode: str) -> Kind:
    """Return the kind of block that `upsample_conv` is; "conv" enlarges the image before it."""
    return "conv" if pad_mode == "reflect" and padding > REFLECT_LIMIT else "upsample"


def combined_filters(w: Tensor) -> Tensor:
    """Return [G, C, K, R + 1, S + 1], transposed filters of stride 2, for w [G, K, C, R, S].

    Summed in fp32 or wider, whatever w's dtype.
    """
    w = w.to(torch.promote_types(w.dtype, torch.float32)).flip(3, 4).transpose(1, 2)
    w = F.pad(w, (0, 0, 0, 1)) + F.pad(w, (0, 0, 1, 0))
    return F.pad(w, (0, 1)) + F.pad(w, (1, 0))


def combined_filters_backward(dw: Tensor) -> Tensor:
    """Return the gradient of w from that of `combined_filters(w)`."""
    dw = dw[..., :-1, :] + dw[..., 1:, :]
    dw = dw[..., :-1] + dw[..., 1:]
    return dw.transpose(1, 2).flip(3, 4)


def phase_filters(w: Tensor, dtype: torch.dtype) -> Tensor:
    """Return filters [4 * K, C, rows, columns] that make a pixel's four phases, from [K, C, R, S].

    The result's channel 4 * k + 2 * i + j is row i and column j of each 2x2 square of channel k.
    Summed in fp32 or wider, channels_last.
    """
    sums = phase_sums(w)
    rows, columns = (taps // 2 + 1 for taps in w.shape[2:])
    found = torch.matmul(sums, w.to(sums.dtype).permute(0, 2, 3, 1).flatten(1, 2))
    return channels_last(found.to(dtype).view(-1, rows, columns, w.shape[1]))


def phase_filters_backward(dw: Tensor, w: Tensor) -> Tensor:
    """Return the gradient of w [K, C, R, S] from that of `phase_filters(w)`."""
    sums = phase_sums(w)
    dw = dw.to(sums.dtype).permute(0, 2, 3, 1).reshape(len(w), len(sums), -1)
    return channels_last(torch.matmul(sums.T, dw).unflatten(1, w.shape[2:]))


def phase_sums(w: Tensor) -> Tensor:
    """Return ones and zeros [4 * rows * columns, R * S]: which taps of w make one of a phase."""
    found = []
    for taps in w.shape[2:]:
        count = taps // 2 + 1
        index = torch.arange(max(taps, 2 * count), device=w.device)
        phase, tap, source = index[:2, None, None], index[:count, None], index[:taps]
        # Large pixels i and j of one square read taps that are i - j apart.
        last = source + 2 * (count - 1 - tap) + phase - (taps - 1)
        found.append(((last == 0) | (last == 1)).to(_wide(w)))
    return torch.einsum("iar,jbs->ijabrs", *found).flatten(0, 3).flatten(1)


def phases(w: Tensor, up: int) -> Tensor:
    """Sort transposed filters [G, C, K, R, S] by the output pixel they reach, zeros filling up.

    Output row ``up * h + i`` is the sum over rows h - a of the input with filter row
    ``up * a + i``. The result is [G, C, K, rows, up, columns, up], a descending along `rows` as
    the input rows ascend.
    """
    rows, columns = (-(-taps // up) for taps in w.shape[3:])
    more = columns * up - w.shape[4], rows * up - w.shape[3]
    if any(more):
        w = F.pad(w, (0, more[0], 0, more[1]))
    return w.unflatten(4, (columns, up)).unflatten(3, (rows, up)).flip(3, 5)


def border_correction(x: Tensor, w: Tensor) -> Tensor:
    """Return what reflect padding by 2 adds along the border: [N, 2 * Q + 2 * P, K].

    x is [N, C, H, W] with H and W at least 2, w [G, K, C, R, S]. The order is top row, bottom
    row, left column, right column; a corner has its whole correction in the row's entry.
    fp32 or wider.
    """
    rows, columns = (
        torch.einsum("gncblt,gkcbt->gnblk", _windows(x, axis, taps), taps).flatten(0, 1)
        for axis, taps in _outer_taps(w, _wide(x))
    )
    for edge in (0, -1):
        for end in (0, -1):
            rows[:, edge, end] += columns[:, end, edge]
    return torch.cat([rows.flatten(1, 2), columns.flatten(1, 2)], 1)


def add_border_correction(y: Tensor, values: Tensor) -> None:
    """Add the values of `border_correction` to the border of y [N, K, P, Q], in place."""
    rows, columns = y.shape[2:]
    values = values.to(y.dtype).transpose(1, 2)
    top, bottom, left, right = values.split((columns, columns, rows, rows), 2)
    y[:, :, 0] += top
    y[:, :, -1] += bottom
    y[:, :, 1:-1, 0] += left[..., 1:-1]
    y[:, :, 1:-1, -1] += right[..., 1:-1]


def add_border_correction_backward(
    dy: Tensor, x: Tensor, w: Tensor, dx: Tensor | None, dw: Tensor | None
) -> None:
    """Add the border correction's share to the gradients of x and w, in place.

    dy is [N, K, P, Q], the gradient of the whole result; dx of x's shape and dw of w's,
    or None for either.
    """
    for axis, taps in _outer_taps(w, _wide(x)):
        edges = torch.stack([dy.select(axis, 0), dy.select(axis, -1)], 2)
        edges = edges.to(taps.dtype).unflatten(0, (w.shape[0], -1))
        if dx is not None:
            d_windows = torch.einsum("gnkbl,gkcbt->gncblt", edges, taps).flatten(0, 1)
            _add_windows_backward(d_windows, dx, axis)
        if dw is not None:
            d_taps = torch.einsum("gncblt,gnkbl->gkcbt", _windows(x, axis, taps), edges)
            for edge in (0, -1):
                dw.select(axis + 1, edge).add_(d_taps[..., edge, :])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _outer_taps(w: Tensor, dtype: torch.dtype) -> tuple[tuple[int, Tensor], ...]:
    """Return x's axis across a pair of borders, and the filters' outer taps [G, K, C, 2, T] there.

    T is S for the rows above and below, R for the columns left and right.
    """
    rows = torch.stack([w[..., 0, :], w[..., -1, :]], 3)
    columns = torch.stack([w[..., 0], w[..., -1]], 3)
    return (2, rows.to(dtype)), (3, columns.to(dtype))


def _windows(x: Tensor, axis: int, taps: Tensor) -> Tensor:
    """Return what the outer taps see across both borders: [G, N / G, C, 2, length, T].

    It is the second line from the border minus the first, upsampled along its length and
    extended by 2, by reflection for rows and by replication for columns (the corners lie in
    the rows' share).
    """
    first, last = x.size(axis) - 2, x.size(axis) - 1
    inner = torch.stack([x.select(axis, 1), x.select(axis, first)], 2)
    outer = torch.stack([x.select(axis, 0), x.select(axis, last)], 2)
    lines = inner.to(taps.dtype) - outer.to(taps.dtype)
    left, right = (1, -2) if axis == 2 else (0, -1)
    # Not lines[..., [left, 0]]: an index list is copied to a GPU, which a CUDA graph refuses.
    ends = [lines.narrow(-1, position % lines.shape[-1], 1) for position in (left, 0, -1, right)]
    long = torch.cat([*ends[:2], lines.repeat_interleave(2, -1), *ends[2:]], -1)
    return long.unfold(-1, taps.shape[-1], 1).unflatten(0, (taps.shape[0], -1))


def _add_windows_backward(d_windows: Tensor, dx: Tensor, axis: int) -> None:
    """Add to dx the adjoint of `_windows` of [N, C, 2, length, T]."""
    *shape, length, taps = d_windows.shape
    long = d_windows.new_zeros(*shape, length + taps - 1)
    for tap in range(taps):
        long[..., tap : tap + length] += d_windows[..., tap]
    lines = long[..., 2:-2].unflatten(-1, (-1, 2)).sum(-1)
    left, right = (1, -2) if axis == 2 else (0, -1)
    for position, share in ((left, 0), (0, 1), (-1, -2), (right, -1)):
        lines[..., position] += long[..., share]
    for border, (inner, outer) in enumerate(((1, 0), (-2, -1))):
        dx.select(axis, inner).add_(lines[:, :, border])
        dx.select(axis, outer).sub_(lines[:, :, border])
