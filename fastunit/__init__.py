"""UNIT: unsupervised image-to-image translation, fast and dependable.

- `load` gives a `Translator` for a run, a checkpoint or a release's file; its `translate` takes
  tensors, NumPy arrays and images of Pillow.
- `config.load` and `config.from_dict` make a `Config`; `fit` trains with it and says where the run
  is. It is not called `train`, because `fastunit.train` is the module of the command line.
- `UNIT`, `PaperUNIT` (the networks of the 2018 release and of the paper, for both domains),
  `VAEGen`, `MsImageDis` and the blocks are torch.nn modules; `TrainStep` updates them.
- `errors` has the exceptions; what a user can mend is a `UserError`, which is a ValueError.

`fastunit.kernels` has the fused operations, `fastunit.compat` the release's trainer class,
`fastunit.paper` the paper's networks under its own names.

Names that need PyTorch are imported when they are first used, so that ``fastunit --help`` does not
wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastunit import config
from fastunit.common import errors
from fastunit.config import Config

if TYPE_CHECKING:
    from fastunit.inference.translator import Translator
    from fastunit.models.layers import Conv2dBlock, LayerNorm, LinearBlock, ResBlock, ResBlocks
    from fastunit.models.unit import UNIT, PaperUNIT
    from fastunit.models.unit2018 import MsImageDis, VAEGen
    from fastunit.training.loading import load
    from fastunit.training.run import fit
    from fastunit.training.step import TrainStep

    __version__: str

__all__ = [
    "UNIT",
    "Config",
    "Conv2dBlock",
    "LayerNorm",
    "LinearBlock",
    "MsImageDis",
    "PaperUNIT",
    "ResBlock",
    "ResBlocks",
    "TrainStep",
    "Translator",
    "VAEGen",
    "__version__",
    "config",
    "errors",
    "fit",
    "load",
]

_MODULES = {
    "fastunit.inference.translator": ("Translator",),
    "fastunit.models.layers": ("Conv2dBlock", "LayerNorm", "LinearBlock", "ResBlock", "ResBlocks"),
    "fastunit.models.unit": ("UNIT", "PaperUNIT"),
    "fastunit.models.unit2018": ("MsImageDis", "VAEGen"),
    "fastunit.training.loading": ("load",),
    "fastunit.training.run": ("fit",),
    "fastunit.training.step": ("TrainStep",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("fastunit.common.version").version()
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
