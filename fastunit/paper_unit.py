"""The paper's networks as the training step, checkpoints and translation see them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import nn

from fastunit import paper
from fastunit.config import Config
from fastunit.coupled import Coupled
from fastunit.initialise import copy_matching, initialise
from fastunit.paper import COCOResGen
from fastunit.paper_options import DisOptions, ResGenOptions, SharedDisOptions
from fastunit.vae import start_sigma


class PaperUNIT(Coupled):
    """One module of both generators, `gen`, and one of both discriminators, `dis`.

    Generators start as ``config.init`` says, discriminators N(0, 0.02), all biases 0. With
    ``config.init_b`` "copy" domain b's own layers start as domain a's where their shapes agree.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        generator = getattr(paper, config.paper.gen.name)
        self.gen = generator(_options(ResGenOptions, config.paper.gen, config), config.latent)
        shared = config.paper.dis.name == "COCOSharedDis"
        options = SharedDisOptions if shared else DisOptions
        discriminator = getattr(paper, config.paper.dis.name)
        self.dis = discriminator(_options(options, config.paper.dis, config))
        initialise(self.gen, config.init)
        initialise(self.dis, "gaussian")
        if self.gen.sigma is not None:
            start_sigma(self.gen.sigma)
        if config.init_b == "copy":  # after all draws: what is drawn later does not depend on it
            copy_matching(self.gen_a, self.gen_b)

    gen_a = property(lambda self: self.gen.domains["a"])
    gen_b = property(lambda self: self.gen.domains["b"])
    dis_a = property(lambda self: self.dis.domains["a"])
    dis_b = property(lambda self: self.dis.domains["b"])

    def translator(self) -> COCOResGen:
        return self.gen

    def layout(self) -> dict[str, nn.Module]:
        return {"gen": self.gen, "dis": self.dis}


def _options(cls: type, section: Any, config: Config) -> Any:
    """Return a network's options from its section and the images' channels."""
    channels = {"input_dim_a": config.input_dim_a, "input_dim_b": config.input_dim_b}
    given = asdict(section) | channels
    return cls(**{spec.name: given[spec.name] for spec in fields(cls)})
