"""Lets the package be imported where Triton is not installed (Windows, macOS, small images).

While `fastunit.kernels` is imported there, what the files of kernels take from Triton are stand-ins
that decorate nothing; afterwards `import triton` fails again, so that PyTorch finds none. What then
needs a kernel says so: `runtime` asks `AVAILABLE`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

try:
    import triton  # noqa: F401

    AVAILABLE = True
except ImportError:
    AVAILABLE = False


class _Standin(ModuleType):
    """A module with whatever is asked of it; false, and called it returns its first argument."""

    __path__: Sequence[str] = ()  # a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Standin(name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if args else lambda function: function

    def __bool__(self) -> bool:
        return False


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes stand-ins of triton and its modules."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Standin(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_finder = _Finder()
_before: dict[str, Any] = {}
if not AVAILABLE:
    if "triton" in sys.modules:  # None, which refuses the import
        _before["triton"] = sys.modules.pop("triton")
    sys.meta_path.insert(0, _finder)


def finish() -> None:
    """Take the stand-ins away again, once the kernels' files have been imported."""
    if _finder not in sys.meta_path:
        return
    sys.meta_path.remove(_finder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        del sys.modules[name]
    sys.modules.update(_before)
