"""UNIT: unsupervised image-to-image translation, fast and dependable.

- `load` returns a `Translator` for a run's folder, a checkpoint or a gen_*.pt of the 2018 release;
  its `translate` takes tensors, NumPy arrays and Pillow images.
- `config.load` and `config.from_dict` return a `Config`; `fit` trains with it and returns where the
  run is. It is not called `train` because `fastunit.train` is the command line's module.
- `UNIT`, `PaperUNIT` (both domains' networks, of the 2018 release and of the paper), `VAEGen`,
  `MsImageDis` and the blocks are torch.nn modules; `TrainStep` updates them.
- `errors` has the exceptions; user errors are `UserError`, a ValueError.

`fastunit.kernels` has the fused operations, `fastunit.nn` modules on them, `accelerate` lets other
networks run on them. `fastunit.compat` has the 2018 release's trainer class and its scripts' names,
`fastunit.paper` the paper's networks under the 2017 release's names.

Names that need PyTorch are imported on first use, so that ``fastunit --help`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastunit import config
from fastunit.common import errors
from fastunit.config import Config

if TYPE_CHECKING:
    from fastunit.fusion.accelerate import accelerate
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
    "accelerate",
    "config",
    "errors",
    "fit",
    "load",
]

_MODULES = {
    "fastunit.fusion.accelerate": ("accelerate",),
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
