"""Options of the paper's networks (the 2017 release): keys, their meanings and limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fastunit.common.errors import ConfigError
from fastunit.config.fields import Options, build, key, section

Generator = Literal["COCOResGen", "COCOResGen2"]
Discriminator = Literal["COCODis", "COCOMsDis", "COCOSharedDis"]
OPTIONAL = ("res_dropout_ratio",)


@dataclass(frozen=True)
class _Images:
    input_dim_a: int = key(3, "channels of domain a's images", low=1, high=1024)
    input_dim_b: int = key(3, "channels of domain b's images", low=1, high=1024)


@dataclass(frozen=True)
class _ResGen:
    ch: int = key(64, "channels of the first layer", low=1, high=4096)
    n_enc_front_blk: int = key(
        3, "the encoder's first layer and its stride-2 layers", low=1, high=11
    )
    n_enc_res_blk: int = key(3, "residual blocks of each encoder", low=0, high=256)
    n_enc_shared_blk: int = key(1, "residual blocks that both encoders share", low=0, high=256)
    n_gen_shared_blk: int = key(1, "residual blocks that both decoders share", low=0, high=256)
    n_gen_res_blk: int = key(3, "residual blocks of each decoder", low=0, high=256)
    n_gen_front_blk: int = key(
        3, "the decoder's upsampling layers and its last layer", low=1, high=11
    )
    res_dropout_ratio: float = key(
        0.0, "dropout probability in residual blocks", low=0.0, below=1.0
    )

    def __post_init__(self) -> None:
        if self.n_gen_front_blk != self.n_enc_front_blk:
            raise ConfigError(
                f"n_gen_front_blk={self.n_gen_front_blk} must be "
                f"n_enc_front_blk={self.n_enc_front_blk}, or images would change their size"
            )

    @property
    def multiple(self) -> int:
        """The number that an image's height and width must be multiples of."""
        return 2 ** (self.n_enc_front_blk - 1)


@dataclass(frozen=True)
class _Dis:
    ch: int = key(64, "channels of the first layer", low=1, high=4096)
    n_layer: int = key(5, "stride-2 layers of COCODis and COCOMsDis", low=1, high=16)


@dataclass(frozen=True)
class _SharedDis:
    ch: int = key(64, "channels of the first layer", low=1, high=4096)
    n_front_layer: int = key(3, "stride-2 layers of each domain in COCOSharedDis", low=1, high=16)
    n_shared_layer: int = key(
        2, "stride-2 layers of COCOSharedDis that both domains share", low=0, high=16
    )


@dataclass(frozen=True)
class ResGenOptions(_Images, _ResGen):
    """Options of COCOResGen and COCOResGen2."""


@dataclass(frozen=True)
class DisOptions(_Images, _Dis):
    """Options of COCODis and COCOMsDis."""


@dataclass(frozen=True)
class SharedDisOptions(_Images, _SharedDis):
    """Options of COCOSharedDis."""


@dataclass(frozen=True)
class PaperGeneratorConfig(_ResGen):
    """Section paper.gen; without the images' channels."""

    name: Generator = key("COCOResGen", "the generators' class")


@dataclass(frozen=True)
class PaperDiscriminatorConfig(_SharedDis, _Dis):
    """Section paper.dis; without the images' channels."""

    name: Discriminator = key("COCOMsDis", "the discriminators' class")


@dataclass(frozen=True)
class PaperConfig:
    """Section paper: the networks of the paper's release."""

    gen: PaperGeneratorConfig = section(PaperGeneratorConfig, "generators")
    dis: PaperDiscriminatorConfig = section(PaperDiscriminatorConfig, "discriminators")


def read(
    cls: type[Options], params: Mapping[str, Any] | Options, name: str, network: str
) -> Options:
    """Return checked options of a network of the 2017 release.

    Args:
        cls: the options' dataclass.
        params: a mapping, or an instance of `cls`. All keys but those in OPTIONAL must be given:
            the 2017 release has no defaults. Its key "name", if present, must be `network`.
        name: the section for messages, "gen" or "dis".
        network: the name of the network's class.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is out of range;
            the message names the key, the value and the valid choices.
    """
    values = dataclasses.asdict(params) if isinstance(params, cls) else params
    if isinstance(values, Mapping) and "name" in values:
        if values["name"] != network:
            raise ConfigError(f"{name}.name={values['name']!r} is not this class, {network}")
        values = {k: v for k, v in values.items() if k != "name"}
    if isinstance(values, Mapping):
        names = [spec.name for spec in fields(cls)]
        required = [each for each in names if each not in OPTIONAL]
        missing = [each for each in required if each not in values]
        if missing and all(each in names for each in values):  # `build` names an unknown key
            raise ConfigError(
                f"section {name} has no {', '.join(missing)}; it must hold {', '.join(required)}"
            )
    return build(cls, values, name)
