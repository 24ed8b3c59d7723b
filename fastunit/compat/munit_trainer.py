"""The `MUNIT_Trainer` of MUNIT's release, for code that was written for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastunit.compat.hyperparameters import MUNIT_ATTRIBUTES, MUNIT_WEIGHTS, configuration
from fastunit.compat.release_trainer import ReleaseTrainer
from fastunit.config import MunitConfig
from fastunit.models.munit import AdaINGen
from fastunit.training import plain_munit_objective


class MUNIT_Trainer(ReleaseTrainer):
    """As `UNIT_Trainer`, with MUNIT's networks and objective.

    Args:
        hyperparameters: the mapping of a release YAML file. Keys unknown to both the release and
            fastunit are ignored with a warning.

    Attributes:
        gen_a: generator of domain a, an `AdaINGen`.
        gen_b: generator of domain b.
        dis_a: discriminator of domain a.
        dis_b: discriminator of domain b.
        style_dim: values of a style code.
        s_a: styles that `forward` and `sample` translate to a with, [display_size, style_dim, 1,
            1]; in no state_dict.
        s_b: styles of b, likewise.

    After an update its losses are attributes under the names in `MUNIT_ATTRIBUTES`. What is said
    of `UNIT_Trainer`'s other attributes, and of replaced methods and networks, is true of this
    class; styles that are not given are drawn by `torch.randn`.

    Raises:
        ValueError: a value is wrong, or `network` is not MUNIT's.
    """

    gen_a: AdaINGen
    gen_b: AdaINGen
    s_a: Tensor
    s_b: Tensor
    KINDS, WEIGHTS, PLAIN = MUNIT_ATTRIBUTES, MUNIT_WEIGHTS, plain_munit_objective

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        settings = configuration(hyperparameters, "munit")
        assert isinstance(settings, MunitConfig)
        super().__init__(settings)
        self.style_dim = settings.gen.style_dim
        for name in ("s_a", "s_b"):  # buffers: they move with the networks
            styles = torch.randn(settings.display_size, self.style_dim, 1, 1)
            self.register_buffer(name, styles, persistent=False)

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translations x_ab and x_ba with the styles s_b and s_a, one for each image.

        Args:
            x_a: images of domain a, at most display_size; sides are multiples of the downsampling.
            x_b: images of domain b, likewise.
        """
        with self._evaluating():
            c_a, c_b = self.gen_a.encode(x_a)[0], self.gen_b.encode(x_b)[0]
            x_ba = self.gen_a.decode(c_b, self._shown(self.s_a, x_b))
            x_ab = self.gen_b.decode(c_a, self._shown(self.s_b, x_a))
        return x_ab, x_ba

    @torch.no_grad()
    def sample(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, ...]:
        """Return x_a, its reconstruction, two translations, and the same of x_b.

        The first translations are with the styles s_b and s_a, the second with new ones.

        Args:
            x_a: images of domain a, at most display_size; sides are multiples of the downsampling.
            x_b: images of domain b, likewise.
        """
        with self._evaluating():
            drawn_a, drawn_b = (
                x.new_empty(len(x), self.style_dim, 1, 1).normal_() for x in (x_b, x_a)
            )
            c_a, own_a = self.gen_a.encode(x_a)
            c_b, own_b = self.gen_b.encode(x_b)
            outputs = (
                x_a,
                self.gen_a.decode(c_a, own_a),
                self.gen_b.decode(c_a, self._shown(self.s_b, x_a)),
                self.gen_b.decode(c_a, drawn_b),
                x_b,
                self.gen_b.decode(c_b, own_b),
                self.gen_a.decode(c_b, self._shown(self.s_a, x_b)),
                self.gen_a.decode(c_b, drawn_a),
            )
        return outputs

    def _shown(self, styles: Tensor, x: Tensor) -> Tensor:
        if len(x) > len(styles):
            raise ValueError(
                f"{len(x)} images need as many styles, but there are display_size={len(styles)}; "
                "give fewer, or assign s_a and s_b"
            )
        return styles[: len(x)]


MUNIT_Trainer.METHODS = {
    name: getattr(MUNIT_Trainer, name) for name in ("recon_criterion", "compute_vgg_loss")
}
