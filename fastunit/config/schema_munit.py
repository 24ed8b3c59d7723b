"""The configuration of MUNIT's networks and objective, ``network: munit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastunit.common.choices import Network
from fastunit.config.fields import Unused, key, section
from fastunit.config.schema import Config, GeneratorConfig


@dataclass(frozen=True)
class MunitGeneratorConfig(GeneratorConfig):
    """The section `gen` of MUNIT."""

    UNUSED: ClassVar[dict[str, Unused]] = {}

    style_dim: int = key(8, "with network=munit: values of a style code", low=1, high=4096)
    mlp_dim: int = key(
        256, "with network=munit: features of the network from style codes to AdaIN's parameters",
        low=1, high=65536,
    )  # fmt: skip


@dataclass(frozen=True)
class MunitConfig(Config):
    """As `Config`, with the keys of MUNIT; defaults of its weights are those of its release."""

    UNUSED: ClassVar[dict[str, Unused]] = {}

    network: Network = key("munit", Config.__dataclass_fields__["network"].metadata["doc"])
    gen: MunitGeneratorConfig = section(MunitGeneratorConfig, "generators")
    recon_s_w: float = key(
        1.0, "with network=munit: L1 of the re-encoded style codes", low=0.0, high=1e6
    )
    recon_c_w: float = key(
        1.0, "with network=munit: L1 of the re-encoded content codes", low=0.0, high=1e6
    )
