"""Options of the paper's networks: keys with their meaning and limits, checked by name.

All keys but `res_dropout_ratio` must be given, as the 2017 release has no defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from fastunit.errors import ConfigError
from fastunit.typed import build

T = TypeVar("T")


def _from(low: int, doc: str) -> dict[str, Any]:
    return {"doc": doc, "low": low}


@dataclass(frozen=True)
class ResGenOptions:
    """Options of COCOResGen and COCOResGen2."""

    ch: int = field(metadata=_from(1, "channels of the first layer"))
    input_dim_a: int = field(metadata=_from(1, "channels of domain a's images"))
    input_dim_b: int = field(metadata=_from(1, "channels of domain b's images"))
    n_enc_front_blk: int = field(metadata=_from(1, "the first layer and the halvings after it"))
    n_enc_res_blk: int = field(metadata=_from(0, "residual blocks of each encoder"))
    n_enc_shared_blk: int = field(metadata=_from(0, "residual blocks that both encoders share"))
    n_gen_shared_blk: int = field(metadata=_from(0, "residual blocks that both decoders share"))
    n_gen_res_blk: int = field(metadata=_from(0, "residual blocks of each decoder"))
    n_gen_front_blk: int = field(metadata=_from(1, "the doublings and the last layer"))
    res_dropout_ratio: float = field(
        default=0.0,
        metadata=_from(0, "share of a residual block's values set to 0 in training")
        | {"below": 1.0},
    )

    def __post_init__(self) -> None:
        if self.n_gen_front_blk != self.n_enc_front_blk:
            raise ConfigError(
                f"gen.n_gen_front_blk={self.n_gen_front_blk} must be "
                f"gen.n_enc_front_blk={self.n_enc_front_blk}, or images would change their size"
            )


@dataclass(frozen=True)
class DisOptions:
    """Options of COCODis and COCOMsDis."""

    ch: int = field(metadata=_from(1, "channels of the first layer"))
    input_dim_a: int = field(metadata=_from(1, "channels of domain a's images"))
    input_dim_b: int = field(metadata=_from(1, "channels of domain b's images"))
    n_layer: int = field(metadata=_from(1, "stride-2 layers"))


@dataclass(frozen=True)
class SharedDisOptions:
    """Options of COCOSharedDis."""

    ch: int = field(metadata=_from(1, "channels of the first layer"))
    input_dim_a: int = field(metadata=_from(1, "channels of domain a's images"))
    input_dim_b: int = field(metadata=_from(1, "channels of domain b's images"))
    n_front_layer: int = field(metadata=_from(1, "stride-2 layers of each domain"))
    n_shared_layer: int = field(metadata=_from(0, "stride-2 layers that both domains share"))


def read(cls: type[T], params: Mapping[str, Any] | T, section: str) -> T:
    """Return checked options from a mapping, or from an instance of `cls`.

    Raises ConfigError naming the key in its section ("gen" or "dis"), the value and what it may
    be: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    values = dataclasses.asdict(params) if isinstance(params, cls) else params
    if isinstance(values, Mapping):
        names = [spec.name for spec in fields(cls)]
        required = [spec.name for spec in fields(cls) if spec.default is MISSING]
        missing = [name for name in required if name not in values]
        if missing and all(key in names for key in values):  # `build` names an unknown key
            raise ConfigError(
                f"section {section} has no {', '.join(missing)}; it must hold {', '.join(required)}"
            )
    return build(cls, values, section)
