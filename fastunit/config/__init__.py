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

__all__ = [
    "DATA_KEYS",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiscriminatorConfig",
    "Domain",
    "GeneratorConfig",
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
