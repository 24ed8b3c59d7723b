"""UNIT: unsupervised image-to-image translation, fast and dependable.

The public names are imported when they are first used, so that ``fastunit --help`` and modules
that need no networks do not wait for PyTorch.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastunit.layers import Conv2dBlock, LayerNorm, LinearBlock, ResBlock, ResBlocks
    from fastunit.networks import MsImageDis, VAEGen
    from fastunit.unit import UNIT

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
    "fastunit.layers": ("Conv2dBlock", "LayerNorm", "LinearBlock", "ResBlock", "ResBlocks"),
    "fastunit.networks": ("MsImageDis", "VAEGen"),
    "fastunit.unit": ("UNIT",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("fastunit")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
