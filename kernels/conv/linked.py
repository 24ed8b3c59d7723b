"""Blocks that hand images on in the frame that the next one reads, on Triton kernels in eager mode.

A block's last pass over its result writes it with the halo that the next block needs. The next
block's backward pass then returns the gradient of the haloed image, and this block folds the halo
where it reads the gradient: no pass only copies or folds. A residual connection takes the image
inside the frame, so that its gradient comes apart from the convolution's, and is added in the same
pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.common import derivatives, runtime
from fastunit.kernels.common.frame import Frame, channels_last, no_view
from fastunit.kernels.conv import arguments, launch
from fastunit.kernels.conv.direct import needed_gradients
from fastunit.kernels.conv.geometry import Conv, Transpose, convolution
from fastunit.kernels.conv.layouts import Direct
from fastunit.kernels.conv.plan import Plan

_TENSORS = 7  # of a block


class Padded(NamedTuple):
    """An image in the frame of the block that reads it: two views of one buffer."""

    image: Tensor  # [N, C, H, W]
    haloed: Tensor  # [N, C, H + 2 * halo, W + 2 * halo]
    frame: Frame


class Next(NamedTuple):
    """The block that will read a result: its plan and its filters' shape."""

    plan: Plan
    filters: torch.Size


def run(
    plan: Plan,
    x: Tensor | Padded,
    image: Tensor,
    w: Tensor,
    b: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    prelu: Tensor | None,
    residual: Tensor | None,
    filters: tuple[Tensor | None, Tensor | None],
    into: Direct | None,
    shape: tuple[int, ...],
    follow: Next | None,
) -> Tensor | Padded:
    """Run a block whose arguments were checked; `shape` is its result's.

    Args:
        plan: what to compute, with impl "triton".
        x: the image as it was given.
        image: the same in the dtype to compute in.
        w: filters; these tensors are those of `conv_norm_act`.
        b: bias.
        gamma: scale.
        beta: shift.
        prelu: prelu's slope.
        residual: added last.
        filters: w, laid out before for the product and for the gradient of x.
        into: where the parameters' gradients are added; None: autograd gets them.
        shape: [N, K, P, Q] of the result.
        follow: the block that reads the result; None: anything may.
    """
    conv = convolution(plan, image.shape, w.shape[-4:])
    framed = isinstance(x, Padded) and x.frame == conv.x_frame and x.image.dtype == image.dtype
    source = x.haloed if framed and isinstance(x, Padded) else image
    reader = None if follow is None else convolution(follow.plan, shape, follow.filters[-4:])
    tensors = source, w, b, gamma, beta, prelu, residual
    anchor = None if into is None else into.parameter
    how = plan, conv if framed else None, reader, into, anchor
    linked: Any = _Linked.apply
    found = linked(*tensors, *filters, *how)
    if reader is None:
        return found
    without_halo, haloed = found
    return Padded(without_halo, haloed, reader.x_frame)


class _Linked(torch.autograd.Function):
    """A block whose input, result or both are in frames."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        x, w, b, gamma, beta, prelu, residual, filters, for_x, *how = args
        plan, conv, reader, into, parameter = how
        buffer, image = None, x
        if conv is not None:
            buffer, image = _buffer(x, conv), _inside(x, conv.halo)
        tensors: Any = (*arguments.grouped(w, b, gamma, beta), prelu, residual)
        fprop: Any = launch.fprop
        y, haloed, raw, mean, rstd = fprop(
            plan, image, *tensors, filters, buffer, reader
        )  # fmt: skip
        ctx.plan, ctx.reader, ctx.x_shape = plan, reader, image.shape
        ctx.linked, ctx.has_residual = conv is not None, residual is not None
        ctx.into = into if into is not None and parameter.requires_grad else None
        results = (no_view(y),) if reader is None else _views(y, reader)
        if plan.fuses_activation(residual is not None, gamma, beta, prelu):
            raw = results[0]
        saved = raw if plan.keeps_product(gamma) else None
        source = buffer if haloed is None else haloed
        source = image if source is None else source
        ctx.save_for_backward(source, saved, mean, rstd, w, b, gamma, beta, prelu, for_x)
        ctx.set_materialize_grads(False)
        return results[0] if reader is None else results

    @staticmethod
    def backward(ctx: Any, of_image: Tensor | None, of_haloed: Tensor | None = None) -> Any:
        if derivatives.differentiated_again():
            raise RuntimeError(
                "a network's layers that hand images on are differentiable once; for second "
                "derivatives set FASTUNIT_IMPL=plain"
            )
        nothing = (None,) * 7  # of filters, and of what are no tensors
        if of_image is None and of_haloed is None:
            return *(None,) * _TENSORS, *nothing
        reader, needs = ctx.reader, ctx.needs_input_grad[:_TENSORS]
        dy: Any = of_haloed
        more = of_image
        if of_haloed is None:
            dy, more, reader = of_image, None, None
        source, product, mean, rstd, *parameters, prelu, filters = ctx.saved_tensors
        needed = needed_gradients(ctx.plan, needs, ctx.into, ctx.has_residual)
        weights: Any = arguments.grouped(*parameters)
        with runtime.no_autocast(dy):
            backward: Any = launch.backward
            found = backward(
                ctx.plan, dy, ctx.x_shape, source, product, mean, rstd,
                *weights, prelu, needed, filters, ctx.into, more, ctx.linked, reader,
            )  # fmt: skip
        gradients = list(found)
        for place, parameter in enumerate(parameters, start=1):
            gradient = gradients[place]
            if gradient is not None and parameter is not None:
                gradients[place] = gradient.view_as(parameter)
        if ctx.has_residual and found.residual is None:
            gradients[-1] = dy
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *nothing


def _buffer(haloed: Tensor, conv: Conv | Transpose) -> Tensor:
    """Return the buffer of a haloed image in the frame of the block that reads it."""
    frame, (n, h, w) = conv.x_frame, haloed.permute(0, 2, 3, 1).stride()[:3]
    before = (frame.lead - conv.halo) * (h + w)
    shape = len(haloed), frame.height, frame.width, frame.pitch
    return haloed.as_strided(shape, (n, h, w, 1), haloed.storage_offset() - before)


def _views(buffer: Tensor, reader: Conv | Transpose) -> tuple[Tensor, Tensor]:
    """Return the image in its reader's frame, without and with its halo."""
    found, channels = [], reader.channels
    for halo in (0, reader.halo):
        first = reader.x_frame.lead - halo
        rows, columns = (length + 2 * halo for length in reader.size)
        view = buffer[:, first : first + rows, first : first + columns, :channels]
        found.append(channels_last(view))
    return found[0], found[1]


def _inside(haloed: Tensor, halo: int) -> Tensor:
    """Return the image of a haloed one, [N, C, H, W]."""
    return haloed[:, :, halo:-halo, halo:-halo] if halo else haloed
