"""Functions that stand in for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Return a function of any arguments that raises the error."""

    def instead(*_: object, **__: object) -> NoReturn:
        raise error

    return instead
