"""How to install what an optional part of fastunit needs."""

from __future__ import annotations

import shlex
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def install(extra: str) -> str:
    """Return the command that installs an extra: from the checkout that the code runs in, if any.

    The command works from any folder.
    """
    if not (_CHECKOUT / "setup.py").is_file():
        return f"pip install 'fastunit[{extra}]'"
    pins = shlex.quote(str(_CHECKOUT / "constraints.txt"))
    return f"pip install -c {pins} -e {shlex.quote(f'{_CHECKOUT}[{extra}]')}"
