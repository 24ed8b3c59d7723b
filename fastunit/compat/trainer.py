"""The names of the release's `trainer`."""

from __future__ import annotations

from typing import Any, NoReturn

from fastunit.compat.unit_trainer import UNIT_Trainer

__all__ = ["MUNIT_Trainer", "UNIT_Trainer"]


class MUNIT_Trainer:
    """Refuses by name: MUNIT's networks and objective are not part of fastunit.

    Raises:
        NotImplementedError: always.
    """

    def __init__(self, hyperparameters: Any) -> NoReturn:
        raise NotImplementedError(
            "MUNIT_Trainer is not part of fastunit; use UNIT_Trainer (--trainer UNIT)"
        )
