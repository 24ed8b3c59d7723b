"""Other Pythons of `python_requires`, without PyTorch: files parse, configurations are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

OTHERS = [f"3.{minor}" for minor in range(10, 14) if minor != sys.version_info.minor]
PROGRAM = """
import ast, pathlib
for folder in ("fastunit", "kernels", "bench", "tests"):
    for path in pathlib.Path(folder).rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path))
from fastunit import config
print(config.from_dict({"gen": {"dim": 8, "style_dim": 8}}).gen.dim)
print(config.from_dict({"network": "paper"}).network)
"""


def interpreter(version: str) -> str | None:
    """Return the path of an installed Python, on PATH or under pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python"))]
    return found[0] if found else shutil.which(f"python{version}")


@pytest.mark.parametrize("version", OTHERS)
def test_files_parse_and_configurations_are_read(version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"needs Python {version}, on PATH or under pyenv")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["8", "paper"]), done.stderr
