"""What a convolutional block computes, as plain values, and the sizes that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastunit.kernels.norm_act.aten import NormActGradients, NormActOptions, per_row
from fastunit.kernels.norm_act.rows import Rows

Kind = Literal["conv", "transpose", "upsample"]


class Plan(NamedTuple):
    """Everything about a block but its tensors; plain values, in the order of the operators."""

    kind: str  # one of Kind
    stride: int
    padding: int
    output_padding: int
    pad_mode: str
    norm: str
    eps: float
    act: str
    slope: float
    halo: int
    halo_mode: str
    impl: str

    @property
    def norm_act(self) -> NormActOptions:
        return NormActOptions(self.norm, self.eps, self.act, self.slope, self.halo, self.halo_mode)

    @property
    def corrects_border(self) -> bool:
        """Return whether upsampling's border needs corrections; see phases.py."""
        return self.kind == "upsample" and self.pad_mode == "reflect" and self.padding == 2

    def reads_filters(self, filters: Sequence[int]) -> bool:
        """Return whether kernels read filters of this shape themselves, not only their layouts.

        Upsampling does for the border, and a convolution with one filter of a pixel and a channel.
        """
        one = filters[-4] == filters[-2] == filters[-1] == 1
        return self.kind == "upsample" or one

    def fuses_activation(self, residual: bool, *others: Tensor | None) -> bool:
        """Return whether bias and activation are the only epilogue, invertible from the result.

        `others` are the other tensors of `norm_act`: gamma, beta, prelu's slope.
        """
        plain = self.norm == "none" and self.halo == 0 and not residual
        undone = not (self.act == "lrelu" and self.slope < 0)
        return plain and undone and all(other is None for other in others)

    def keeps_product(self, gamma: Tensor | None) -> bool:
        """Return whether backward needs the product, or the result in its place."""
        return self.norm != "none" or self.act != "none" or gamma is not None

    def without_halo(self, dy: Tensor, axes: tuple[int, int]) -> Tensor:
        """Return the part of a gradient that is the image's, for its shape, dtype and device."""
        for axis in axes if self.halo else ():
            dy = dy.narrow(axis, self.halo, dy.shape[axis] - 2 * self.halo)
        return dy

    def parameter_gradients(
        self,
        gradients: NormActGradients,
        b: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        prelu: Tensor | None,
        rows: Rows | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of the four: the rows' that were not added, others from the sums."""
        sums = gradients.dshift, gradients.dgamma, gradients.dbeta, gradients.dslope
        parameters = b, gamma, beta, prelu
        db, dgamma, dbeta, dprelu = (
            None if parameter is None or of_samples is None else per_row(of_samples, parameter)
            for of_samples, parameter in zip(sums, parameters, strict=True)
        )
        if rows is not None and not rows.add:
            db, dgamma, dbeta = rows.shift, rows.gamma, rows.beta
        if b is not None and self.norm == "in":
            db = torch.zeros_like(b)  # the norm takes a bias away again
        return db, dgamma, dbeta, dprelu

    @property
    def step(self) -> int:
        """Return the stride between coarse pixels in the fine frame."""
        return 2 if self.kind == "upsample" else self.stride

    def channels_out(self, filters: Sequence[int]) -> int:
        """Return K of the shape [..., K, C, R, S], or [..., C, K, R, S] for a transpose."""
        return filters[-3] if self.kind == "transpose" else filters[-4]

    def size_out(self, size: int, taps: int) -> int:
        """Return the rows (columns) of the result from those of the input and of the filters."""
        if self.kind == "conv":
            return (size + 2 * self.padding - taps) // self.stride + 1
        if self.kind == "upsample":
            return 2 * size + 2 * self.padding - taps + 1
        return (size - 1) * self.stride - 2 * self.padding + taps + self.output_padding


class NeededGradients(NamedTuple):
    """What a backward pass must compute."""

    x: bool
    w: bool
    sums: bool  # of the gradient over pixels: for b, gamma, beta and prelu's slope
    residual: bool  # there was one


class Gradients(NamedTuple):
    """What a backward pass returns; None is for what nobody needed."""

    x: Tensor | None  # [N, C, H, W]
    w: Tensor | None  # as w
    b: Tensor | None  # [G, K]
    gamma: Tensor | None
    beta: Tensor | None
    slope: Tensor | None
    residual: Tensor | None  # [N, K, P, Q]; None where it is dy itself, without a halo
