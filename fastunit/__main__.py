"""The command ``fastunit``, also ``python -m fastunit``: dispatches to a subcommand.

A subcommand's module, and PyTorch with it, is imported only when that subcommand is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from fastunit import __version__

# Each is a module of the same name, whose main(argv, prog) returns the exit code.
COMMANDS = {
    "train": "train on two folders of unpaired images; without options, on the demo",
    "translate": "translate an image, or all images in a folder, to the other domain",
    "evaluate": "measure translations: KID, FID, errors of pairs, cycle error",
    "export": "write trained networks as ONNX, torch.export or safetensors",
    "demo": "serve a page on this machine to try a model on",
    "adapt": "train a classifier for a data set of digits without using its labels",
    "warm": "compile a training step's GPU kernels ahead of time; needs no GPU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand named by the first argument; return its exit code, 2 if unknown."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"fastunit {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command; choose {_choices()}", file=sys.stderr)
        return 2
    return import_module(f"fastunit.{name}").main(rest, prog=f"fastunit {name}")


def _help() -> str:
    commands = "\n".join(f"  {name:10} {purpose}" for name, purpose in COMMANDS.items())
    return (
        "usage: fastunit COMMAND [OPTIONS]\n\n"
        f"commands:\n{commands}\n\n"
        "fastunit COMMAND --help lists a command's options; fastunit --version prints the version."
    )


def _choices() -> str:
    *others, last = COMMANDS
    return f"{', '.join(others)} or {last}"


if __name__ == "__main__":
    sys.exit(main())
