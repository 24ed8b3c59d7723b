"""Both domains' networks: the interface that the training step and translation use.

Subclasses have `gen_a` and `gen_b` (`VAE`), which may share layers, and for training `dis_a` and
`dis_b` (`Discriminator`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.common.choices import DIRECTIONS, Direction
from fastunit.common.errors import UserError
from fastunit.models.discriminator import Discriminator
from fastunit.models.grouped import BatchPair, GroupedExecution
from fastunit.models.vae import VAE, check_image


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block, and back into its mode afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class DomainPair(nn.Module):
    """Both domains' generators, run together by `execution`."""

    gen_a: VAE
    gen_b: VAE

    def __init__(self) -> None:
        super().__init__()
        self.execution = GroupedExecution()

    def encode(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of both images' codes; as each generator's `code`."""
        for generator, x in ((self.gen_a, x_a), (self.gen_b, x_b)):
            generator.check(x)
        return self.execution.run(self.gen_a.encoder, self.gen_b.encoder, BatchPair(x_a, x_b))

    def decode(self, for_a: Tensor, for_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images that gen_a decodes from for_a and gen_b from for_b."""
        return self.execution.run(self.gen_a.dec, self.gen_b.dec, BatchPair(for_a, for_b))

    def translate(self, x: Tensor, direction: Direction) -> Tensor:
        """Translate images without noise. Dropout is active in training mode only.

        Args:
            x: [N, C, H, W] in [-1, 1], of any size: images are extended to the next multiple of
                the downsampling by replicating the last pixels, and the result is cropped.
            direction: "a2b" or "b2a".

        Returns:
            Images [N, K, H, W] in [-1, 1] with the other domain's K channels.

        Raises:
            ValueError: an unknown direction, or images with the wrong channels or no pixels.
        """
        source, target = self._sides(x, direction)
        height, width = x.shape[2:]
        return target.decode(source.code(extended(x, source.multiple)))[..., :height, :width]

    def _sides(self, x: Tensor, direction: Direction) -> tuple[VAE, VAE]:
        """Return source and target of images to translate; raises as `translate`."""
        source, target = self.along(direction)
        check_image(x, source.input_dim)
        if 0 in x.shape[2:]:
            raise ValueError(f"an image of shape {tuple(x.shape)} has no pixels")
        return source, target

    def sample_rows(self, x_a: Tensor, x_b: Tensor) -> dict[str, Tensor]:
        """Return a sample grid's rows by label: [N, C, H, W] in [-1, 1], without noise."""
        z_a, z_b = self.gen_a.code(x_a), self.gen_b.code(x_b)
        x_ab, x_ba = self.gen_b.decode(z_a), self.gen_a.decode(z_b)
        return {
            "input a": x_a,
            "reconstruction a": self.gen_a.decode(z_a),
            "a to b": x_ab,
            "a to b to a": self.gen_a.decode(self.gen_b.code(x_ab)),
            "input b": x_b,
            "reconstruction b": self.gen_b.decode(z_b),
            "b to a": x_ba,
            "b to a to b": self.gen_b.decode(self.gen_a.code(x_ba)),
        }

    def along(self, direction: Direction) -> tuple[VAE, VAE]:
        """Return a direction's source generator (which encodes) and target generator (decodes)."""
        if direction not in DIRECTIONS:
            raise UserError(f"direction={direction!r} must be one of {', '.join(DIRECTIONS)}")
        return (self.gen_a, self.gen_b) if direction == "a2b" else (self.gen_b, self.gen_a)


class GeneratorPair(DomainPair):
    """A pair of two separate generator modules."""

    def __init__(self, gen_a: VAE, gen_b: VAE) -> None:
        super().__init__()
        self.gen_a, self.gen_b = gen_a, gen_b


class TrainablePair(DomainPair):
    """Generators and discriminators of both domains, as `TrainStep` trains them."""

    dis_a: Discriminator
    dis_b: Discriminator

    def discriminate(
        self, x_a: Tensor, x_b: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return dis_a's outputs for x_a and dis_b's for x_b, one tensor per scale."""
        return self.execution.discriminate(self.dis_a, self.dis_b, x_a, x_b)

    def generators(self) -> list[nn.Parameter]:
        """Return both generators' parameters, shared ones once."""
        return _unique(self.gen_a, self.gen_b)

    def discriminators(self) -> list[nn.Parameter]:
        """Return both discriminators' parameters, shared ones once."""
        return _unique(self.dis_a, self.dis_b)

    def generator_pair(self) -> DomainPair:
        """Return the generators alone; the same modules, not copies."""
        raise NotImplementedError

    def layout(self) -> dict[str, nn.Module | dict[str, nn.Module]]:
        """Return the modules of the release's checkpoint files, by their kind, "gen" and "dis"."""
        raise NotImplementedError


def extended(x: Tensor, multiple: int) -> Tensor:
    """Extend images at the bottom and right to the next size that the networks accept."""
    sizes = extended_size(x.shape[2], x.shape[3], multiple)
    height, width = sizes[0] - x.shape[2], sizes[1] - x.shape[3]
    return F.pad(x, (0, width, 0, height), mode="replicate") if height or width else x


def extended_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Return the next height and width that the networks accept."""
    rows, columns = (
        max(-(-size // multiple) * multiple, 2 * multiple, 4) for size in (height, width)
    )
    return rows, columns


def _unique(*modules: nn.Module) -> list[nn.Parameter]:
    return list(dict.fromkeys(chain(*(module.parameters() for module in modules))))
