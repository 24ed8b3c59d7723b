"""``python -m fastunit.compat train.py --config FILE``: run a script of the 2018 release.

The script runs as it is; what it imports as `trainer`, `networks`, `utils` and `data` is ours. On a
machine without CUDA its calls of ``.cuda()`` leave things where they are, and torchvision and
tensorboardX are replaced where they are not installed.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastunit.common import cli

OURS = ("trainer", "networks", "utils", "data")


def substitute() -> None:
    """Put our modules in place of the release's, and stand-ins for what is not installed."""
    for name in OURS:
        sys.modules[name] = importlib.import_module(f"fastunit.compat.{name}")
    if find_spec("torchvision") is None:
        _stand_in("torchvision", transforms="transforms", utils="transforms")
    if find_spec("tensorboardX") is None:
        sys.modules["tensorboardX"] = importlib.import_module("torch.utils.tensorboard")
    if not torch.cuda.is_available():
        _stay_on_cpu()


def _stand_in(package: str, **modules: str) -> None:
    made = sys.modules[package] = ModuleType(package)
    for name, ours in modules.items():
        module = importlib.import_module(f"fastunit.compat.{ours}")
        sys.modules[f"{package}.{name}"] = module
        setattr(made, name, module)


def _stay_on_cpu() -> None:
    def unmoved(self: Any, *args: Any, **options: Any) -> Any:
        return self

    tensor: Any = torch.Tensor
    module: Any = nn.Module
    tensor.cuda = module.cuda = unmoved
    torch.cuda.synchronize = lambda device=None: None


def main(argv: list[str]) -> int:
    """Run a script with its arguments; return the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m fastunit.compat SCRIPT [ARGUMENT ...]\n")
        print("Runs a script of the 2018 release, train.py or test.py, on fastunit.")
        return 0 if argv else cli.USAGE_ERROR
    script = Path(argv[0])
    if not script.is_file():
        message = f"error: {script} is not a file; give the release's train.py or test.py"
        print(message, file=sys.stderr)
        return cli.USAGE_ERROR
    sys.argv = argv

    def run() -> int:
        substitute()
        runpy.run_path(str(script), run_name="__main__")
        return 0

    return cli.guard(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
