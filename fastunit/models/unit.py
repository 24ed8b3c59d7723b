"""UNIT, PaperUNIT and MUNIT: both domains' generators and discriminators."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import nn

from fastunit.config import Config, MunitConfig
from fastunit.config.schema2017 import DisOptions, ResGenOptions, SharedDisOptions
from fastunit.models import unit2017
from fastunit.models.discriminator import Discriminator
from fastunit.models.domain_pair import GeneratorPair, TrainablePair
from fastunit.models.init import copy_matching, initialise
from fastunit.models.styled_pair import MUNIT
from fastunit.models.unit2017 import COCOResGen
from fastunit.models.unit2017_discriminators import PairDiscriminator
from fastunit.models.unit2018 import MsImageDis, VAEGen
from fastunit.models.vae import VAE, start_sigma


def networks(config: Config) -> TrainablePair:
    """Return new initialized networks of the kind that ``config.network`` selects."""
    if isinstance(config, MunitConfig):
        return MUNIT(config)
    return PaperUNIT(config) if config.network == "paper" else UNIT(config)


class UNIT(TrainablePair):
    """Two VAE-GANs with a shared latent space: gen_a, gen_b, dis_a, dis_b.

    With ``config.share`` both generators share the last encoder and first decoder residual
    blocks: these are once in `parameters()`, and in the state_dict of each generator. Initialized
    as in the release: generators by ``config.init``, discriminators N(0, 0.02). With
    ``config.init_b`` "copy", gen_b starts with gen_a's weights where shapes agree.

    Args:
        config: a `fastunit.config.Config`; the networks' keys are used.

    Raises:
        ValueError: `share` asks for more blocks than a generator has.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gen_a = VAEGen(config.input_dim_a, config.gen, config.latent)
        self.gen_b = VAEGen(config.input_dim_b, config.gen, config.latent)
        self.dis_a = MsImageDis(config.input_dim_a, config.dis)
        self.dis_b = MsImageDis(config.input_dim_b, config.dis)
        for generator in (self.gen_a, self.gen_b):
            initialise(generator, config.init)
            if generator.sigma is not None:
                start_sigma(generator.sigma)
        for discriminator in (self.dis_a, self.dis_b):
            initialise(discriminator, "gaussian")
        if config.init_b == "copy":  # after all draws: later random numbers do not depend on it
            copy_matching(self.gen_a, self.gen_b)
        share_blocks(self.gen_a, self.gen_b, enc=config.share.enc, dec=config.share.dec)

    def generator_pair(self) -> GeneratorPair:
        return GeneratorPair(self.gen_a, self.gen_b)

    def layout(self) -> dict[str, dict[str, nn.Module]]:
        return {
            "gen": {"a": self.gen_a, "b": self.gen_b},
            "dis": {"a": self.dis_a, "b": self.dis_b},
        }


def share_blocks(gen_a: VAEGen, gen_b: VAEGen, *, enc: int, dec: int) -> None:
    """Make the generators share the last `enc` and first `dec` residual blocks.

    With `enc` above 0 they also share the layer of a learned standard deviation.

    Args:
        gen_a: the generator whose blocks are shared.
        gen_b: the generator whose blocks are replaced by gen_a's.
        enc: residual blocks, counted from the end of the encoder.
        dec: residual blocks, counted from the start of the decoder.

    Raises:
        ValueError: the generators have fewer blocks.
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
    if enc:
        gen_b.sigma = gen_a.sigma


class PaperUNIT(TrainablePair):
    """The paper's networks: `gen` holds both generators, `dis` both discriminators.

    Generators are initialized by ``config.init``, discriminators N(0, 0.02), all biases 0. With
    ``config.init_b`` "copy", domain b's layers start with domain a's weights where shapes agree.

    Args:
        config: a `fastunit.config.Config`; the section `paper` is used.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        generator: type[COCOResGen] = getattr(unit2017, config.paper.gen.name)
        self.gen = generator(_options(ResGenOptions, config.paper.gen, config), config.latent)
        shared = config.paper.dis.name == "COCOSharedDis"
        options = SharedDisOptions if shared else DisOptions
        discriminator: type[PairDiscriminator] = getattr(unit2017, config.paper.dis.name)
        self.dis = discriminator(_options(options, config.paper.dis, config))
        initialise(self.gen, config.init)
        initialise(self.dis, "gaussian")
        if self.gen.sigma is not None:
            start_sigma(self.gen.sigma)
        if config.init_b == "copy":  # after all draws: later random numbers do not depend on it
            copy_matching(self.gen_a, self.gen_b)

    @property
    def gen_a(self) -> VAE:
        return self.gen.domains["a"]

    @property
    def gen_b(self) -> VAE:
        return self.gen.domains["b"]

    @property
    def dis_a(self) -> Discriminator:
        return self.dis.domains["a"]

    @property
    def dis_b(self) -> Discriminator:
        return self.dis.domains["b"]

    def generator_pair(self) -> COCOResGen:
        return self.gen

    def layout(self) -> dict[str, nn.Module]:
        return {"gen": self.gen, "dis": self.dis}


def _options(cls: type, section: Any, config: Config) -> Any:
    """Return a network's options from its section and the images' channels."""
    channels = {"input_dim_a": config.input_dim_a, "input_dim_b": config.input_dim_b}
    given = asdict(section) | channels
    return cls(**{spec.name: given[spec.name] for spec in fields(cls)})
