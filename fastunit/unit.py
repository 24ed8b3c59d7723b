"""The coupled networks that UNIT trains: generators, which may share layers, and discriminators."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastunit.config import Config
from fastunit.initialise import initialise
from fastunit.networks import MsImageDis, VAEGen, check_image
from fastunit.pairing import Pairing

DIRECTIONS = ("a2b", "b2a")


class GeneratorPair(nn.Module):
    """The two generators that together translate."""

    def __init__(self, gen_a: VAEGen, gen_b: VAEGen) -> None:
        super().__init__()
        self.gen_a, self.gen_b = gen_a, gen_b

    def translate(self, x: Tensor, direction: str) -> Tensor:
        """Translate images "a2b" or "b2a" without noise.

        Images [N, C, H, W] in [-1, 1] of any size: sides that the downsampling does not divide
        are extended by repeating the last pixels, and the result is cut back to [N, K, H, W].
        """
        source, target = self.along(direction)
        height, width = x.shape[2:]
        return target.decode(source.code(_extended(x, source.multiple)))[..., :height, :width]

    def along(self, direction: str) -> tuple[VAEGen, VAEGen]:
        """Return the generators whose encoder and whose decoder serve a direction."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} must be one of {', '.join(DIRECTIONS)}")
        return (self.gen_a, self.gen_b) if direction == "a2b" else (self.gen_b, self.gen_a)


class UNIT(GeneratorPair):
    """Two VAE-GANs with a shared latent space: gen_a, gen_b, dis_a, dis_b.

    With ``config.share`` the last encoder and first decoder residual blocks of both generators
    are the same modules: once in `parameters()`, in the state_dict of each generator.
    Initialised as the release: generators by ``config.init``, discriminators N(0, 0.02).
    """

    def __init__(self, config: Config) -> None:
        super().__init__(
            VAEGen(config.input_dim_a, config.gen), VAEGen(config.input_dim_b, config.gen)
        )
        self.dis_a = MsImageDis(config.input_dim_a, config.dis)
        self.dis_b = MsImageDis(config.input_dim_b, config.dis)
        for generator in (self.gen_a, self.gen_b):
            initialise(generator, config.init)
        for discriminator in (self.dis_a, self.dis_b):
            initialise(discriminator, "gaussian")
        share_blocks(self.gen_a, self.gen_b, enc=config.share.enc, dec=config.share.dec)

        self.pairing = Pairing()

    def encode(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of both images' codes; as `code` of each generator."""
        for generator, x in ((self.gen_a, x_a), (self.gen_b, x_b)):
            generator.check(x)
        return self.pairing.run(self.gen_a.enc.model, self.gen_b.enc.model, x_a, x_b)

    def decode(self, for_a: Tensor, for_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return each generator's image of a code of its own; as `decode` of each."""
        return self.pairing.run(self.gen_a.dec.model, self.gen_b.dec.model, for_a, for_b)

    def discriminate(
        self, x_a: Tensor, x_b: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return each discriminator's outputs, one for each scale; as calling each."""
        for discriminator, x in ((self.dis_a, x_a), (self.dis_b, x_b)):
            check_image(x, discriminator.input_dim)
        return self.pairing.run_scales(self.dis_a.cnns, self.dis_b.cnns, x_a, x_b)

    def generators(self) -> list[nn.Parameter]:
        """Return both generators' parameters, shared ones once."""
        return _unique(self.gen_a, self.gen_b)

    def discriminators(self) -> list[nn.Parameter]:
        """Return both discriminators' parameters."""
        return _unique(self.dis_a, self.dis_b)


def share_blocks(gen_a: VAEGen, gen_b: VAEGen, *, enc: int, dec: int) -> None:
    """Make the last `enc` and first `dec` residual blocks of both generators the same modules.

    Raises ValueError when there are fewer blocks than that.
    """
    for name, count, mine, other in (
        ("enc", enc, gen_a.enc.res_blocks, gen_b.enc.res_blocks),
        ("dec", dec, gen_a.dec.res_blocks, gen_b.dec.res_blocks),
    ):
        if not 0 <= count <= len(mine):
            raise ValueError(f"share.{name}={count} must be between 0 and {len(mine)} blocks")
        start = len(mine) - count if name == "enc" else 0
        for index in range(start, start + count):
            other[index] = mine[index]


def _extended(x: Tensor, multiple: int) -> Tensor:
    """Extend the bottom and right edges to the next size that the networks take."""
    height, width = (
        max(-(-size // multiple) * multiple, 2 * multiple, 4) - size for size in x.shape[2:]
    )
    return F.pad(x, (0, width, 0, height), mode="replicate") if height or width else x


def _unique(*modules: nn.Module) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for module in modules for p in module.parameters()))
