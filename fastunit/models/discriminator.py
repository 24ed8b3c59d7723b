"""The multi-scale discriminator and its adversarial loss (equation 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import GanType
from fastunit.models.chain import run_chain
from fastunit.models.layers import downsample
from fastunit.models.vae import check_image


class Discriminator(nn.Module):
    """A discriminator of one domain, at several image scales, each half the previous one.

    Args:
        cnns: a network for each scale, finest first, from images [N, input_dim, H, W] to logits
            or scores [N, 1, P, Q].
        input_dim: channels of the images.
        gan_type: "lsgan", least squares, or "nsgan", non-saturating cross-entropy.
        mixes_samples: whether images of a batch influence each other's scores (batch norm).
        halve: downsamples the images of one scale to the next.
    """

    def __init__(
        self,
        cnns: Sequence[nn.Module],
        *,
        input_dim: int,
        gan_type: GanType,
        mixes_samples: bool = False,
        halve: Callable[[Tensor], Tensor] = downsample,
    ) -> None:
        super().__init__()
        self.cnns = nn.ModuleList(cnns)
        self.input_dim, self.gan_type = input_dim, gan_type
        self.mixes_samples, self.halve = mixes_samples, halve

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one [N, 1, P, Q] tensor of logits or scores per scale, finest first.

        Args:
            x: images [N, input_dim, H, W] in [-1, 1].

        Raises:
            ValueError: the images' channels do not fit.
        """
        check_image(x, self.input_dim)
        outputs = []
        for scale, net in enumerate(self.cnns):
            if scale:
                x = self.halve(x)
            outputs.append(run_chain(net, x))
        return outputs

    def calc_dis_loss(self, input_fake: Tensor, input_real: Tensor) -> Tensor:
        """Return this discriminator's loss, a scalar (equation 2).

        Runs two passes, as the 2018 release does, because a subclass may mix a batch's samples.

        Args:
            input_fake: translations [N, input_dim, H, W] in [-1, 1].
            input_real: images of the domain, likewise; their N, H and W may differ.

        Returns:
            The sum over scales of the means over batch and pixels, in float32 or wider.

        Raises:
            ValueError: the images' channels do not fit.
        """
        fake, real = self(input_fake), self(input_real)
        return self._terms(fake, 0.0).sum() + self._terms(real, 1.0).sum()

    def can_join(self, input_fake: Tensor, input_real: Tensor) -> bool:
        """Return whether one pass over fake and real images gives the same as two passes."""
        return not self.mixes_samples and input_fake.shape[1:] == input_real.shape[1:]

    def calc_gen_loss(self, input_fake: Tensor) -> Tensor:
        """Return the adversarial loss of the generator, a scalar.

        Args:
            input_fake: translations [N, input_dim, H, W] in [-1, 1].

        Returns:
            The sum over scales of the means over batch and pixels, in float32 or wider.

        Raises:
            ValueError: the images' channels do not fit.
        """
        return self.gen_terms(self(input_fake)).sum()

    def dis_terms(self, outputs: Sequence[Tensor], fakes: int) -> Tensor:
        """Return the terms, [M], whose sum is what `calc_dis_loss` returns.

        Args:
            outputs: a [N, 1, P, Q] tensor per scale.
            fakes: how many of the N images are fake: the first ones.
        """
        parts = (output.split([fakes, len(output) - fakes]) for output in outputs)
        fake, real = zip(*parts, strict=True)
        return torch.cat([self._terms(fake, 0.0), self._terms(real, 1.0)])

    def gen_terms(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the terms, [M], whose sum is what `calc_gen_loss` returns, from the outputs."""
        return self._terms(outputs, 1.0)

    def _terms(self, outputs: Sequence[Tensor], target: float) -> Tensor:
        """Return the terms, [M], of all scales; the sum is that of the means over each scale."""
        values = widened(torch.cat([output.flatten() for output in outputs]))
        counts = torch.cat([values.new_full((x.numel(),), x.numel()) for x in outputs])
        if self.gan_type == "lsgan":
            return (values - target).square() / counts
        targets = torch.full_like(values, target)
        return F.binary_cross_entropy_with_logits(values, targets, reduction="none") / counts


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more terms."""
    first, *rest = terms
    return sum(rest, start=first)


def widened(x: Tensor) -> Tensor:
    """Return x in float32 or wider, the dtypes in which losses are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
