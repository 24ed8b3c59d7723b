"""UNIT: unsupervised image-to-image translation, fast and dependable.

The public names are imported when they are first used, so that ``fastunit --help`` and modules
that need no networks do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastunit.models.layers import Conv2dBlock, LayerNorm, LinearBlock, ResBlock, ResBlocks
    from fastunit.models.unit import UNIT
    from fastunit.models.unit2018 import MsImageDis, VAEGen

    __version__: str

__all__ = [
    "UNIT",
    "Conv2dBlock",
    "LayerNorm",
    "LinearBlock",
    "MsImageDis",
    "ResBlock",
    "ResBlocks",
    "VAEGen",
    "__version__",
]

_MODULES = {
    "fastunit.models.layers": ("Conv2dBlock", "LayerNorm", "LinearBlock", "ResBlock", "ResBlocks"),
    "fastunit.models.unit2018": ("MsImageDis", "VAEGen"),
    "fastunit.models.unit": ("UNIT",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("fastunit.common.version").version()
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
