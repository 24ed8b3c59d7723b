"""Both domains' networks of MUNIT: translation and sampling with style codes."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from fastunit.common.choices import Direction
from fastunit.config import MunitConfig
from fastunit.models.domain_pair import DomainPair, TrainablePair, extended
from fastunit.models.grouped import BatchPair
from fastunit.models.init import copy_matching, initialise
from fastunit.models.munit import AdaINGen
from fastunit.models.unit2018 import MsImageDis

Styles = tuple[Tensor | None, Tensor | None]
SHOWN_STYLES = 2  # random styles of a sample grid


class StyledPair(DomainPair):
    """Both domains' generators of MUNIT. `encode` returns the content codes."""

    gen_a: AdaINGen
    gen_b: AdaINGen

    def __init__(self, gen_a: AdaINGen, gen_b: AdaINGen) -> None:
        super().__init__()
        self.gen_a, self.gen_b = gen_a, gen_b

    def encode_styles(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return both images' style codes [N, style_dim, 1, 1]."""
        both = BatchPair(x_a, x_b)
        return self.execution.run(self.gen_a.enc_style, self.gen_b.enc_style, both)

    def decode(
        self, for_a: Tensor, for_b: Tensor, styles: Styles = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """Return the images that gen_a decodes from for_a and gen_b from for_b.

        Args:
            for_a: content codes.
            for_b: content codes.
            styles: those of the images of a and of b, as `AdaINGen.decode` takes them.
        """
        with ExitStack() as stack:
            for generator, hidden, style in zip(
                (self.gen_a, self.gen_b), (for_a, for_b), styles, strict=True
            ):
                stack.enter_context(generator.styled(hidden, style))
            return super().decode(for_a, for_b)

    def translate(self, x: Tensor, direction: Direction, style: Tensor | None = None) -> Tensor:
        """Translate images, as `DomainPair.translate`.

        Args:
            x: [N, C, H, W] in [-1, 1].
            direction: "a2b" or "b2a".
            style: codes of the target domain, as `AdaINGen.decode` takes them; None: 0, the mean
                of the styles' prior.
        """
        source, target = self._sides(x, direction)
        height, width = x.shape[2:]
        hidden = source.code(extended(x, source.multiple))
        return target.decode(hidden, style)[..., :height, :width]

    def along(self, direction: Direction) -> tuple[AdaINGen, AdaINGen]:
        return super().along(direction)  # pyright: ignore[reportReturnType]

    def _sides(self, x: Tensor, direction: Direction) -> tuple[AdaINGen, AdaINGen]:
        return super()._sides(x, direction)  # pyright: ignore[reportReturnType]

    def random_styles(self, count: int, seed: int) -> Tensor:
        """Return `count` style codes from their prior N(0, 1), the same for a seed on any device.

        Of both domains alike, [count, style_dim]; with a larger count the first stay the same.
        """
        source, size = torch.Generator().manual_seed(seed), self.gen_a.style_dim
        styles = [torch.randn(size, generator=source) for _ in range(count)]
        return torch.stack(styles).to(next(self.parameters()))

    def sample_rows(self, x_a: Tensor, x_b: Tensor) -> dict[str, Tensor]:
        c_a, c_b = self.gen_a.code(x_a), self.gen_b.code(x_b)
        s_a, s_b = self.gen_a.style(x_a), self.gen_b.style(x_b)
        rows = {"input a": x_a, "reconstruction a": self.gen_a.decode(c_a, s_a)}
        rows |= {"a to b": self.gen_b.decode(c_a)}
        rows |= self._random_rows("a to b", self.gen_b, c_a)
        if len(c_a) == len(s_b):
            rows |= {"a to b, style of b": self.gen_b.decode(c_a, s_b)}
        rows |= {"input b": x_b, "reconstruction b": self.gen_b.decode(c_b, s_b)}
        rows |= {"b to a": self.gen_a.decode(c_b)}
        rows |= self._random_rows("b to a", self.gen_a, c_b)
        if len(c_b) == len(s_a):
            rows |= {"b to a, style of a": self.gen_a.decode(c_b, s_a)}
        return rows

    def _random_rows(self, label: str, target: AdaINGen, hidden: Tensor) -> dict[str, Tensor]:
        styles = self.random_styles(SHOWN_STYLES, seed=0)
        return {
            f"{label}, style {number}": target.decode(hidden, style[None])
            for number, style in enumerate(styles, start=1)
        }


class MUNIT(StyledPair, TrainablePair):
    """MUNIT's networks: gen_a, gen_b, dis_a, dis_b.

    Initialized as in its release: generators by ``config.init``, discriminators N(0, 0.02). With
    ``config.init_b`` "copy", gen_b starts with gen_a's weights where shapes agree.

    Args:
        config: a `fastunit.config.MunitConfig`; the networks' keys are used.
    """

    def __init__(self, config: MunitConfig) -> None:
        super().__init__(
            AdaINGen(config.input_dim_a, config.gen), AdaINGen(config.input_dim_b, config.gen)
        )
        self.dis_a = MsImageDis(config.input_dim_a, config.dis)
        self.dis_b = MsImageDis(config.input_dim_b, config.dis)
        for generator in (self.gen_a, self.gen_b):
            initialise(generator, config.init)
        for discriminator in (self.dis_a, self.dis_b):
            initialise(discriminator, "gaussian")
        if config.init_b == "copy":  # after all draws: later random numbers do not depend on it
            copy_matching(self.gen_a, self.gen_b)

    def generator_pair(self) -> StyledPair:
        return StyledPair(self.gen_a, self.gen_b)

    def layout(self) -> dict[str, dict[str, nn.Module]]:
        return {
            "gen": {"a": self.gen_a, "b": self.gen_b},
            "dis": {"a": self.dis_a, "b": self.dis_b},
        }
