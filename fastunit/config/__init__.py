"""Typed configurations. Importing this package imports neither torch nor yaml."""

from fastunit.config.loading import (
    dump_yaml,
    from_dict,
    load,
    names,
    read_yaml,
    reference,
    resolve,
    to_dict,
)
from fastunit.config.schema import (
    DATA_KEYS,
    CheckpointConfig,
    Config,
    DataConfig,
    DiscriminatorConfig,
    Domain,
    GeneratorConfig,
    ShareConfig,
)
from fastunit.config.schema_munit import MunitConfig, MunitGeneratorConfig

__all__ = [
    "DATA_KEYS",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "Domain",
    "GeneratorConfig",
    "MunitConfig",
    "MunitGeneratorConfig",
    "ShareConfig",
    "dump_yaml",
    "from_dict",
    "load",
    "names",
    "read_yaml",
    "reference",
    "resolve",
    "to_dict",
]
