"""The names of the release's `trainer`."""

from fastunit.compat.munit_trainer import MUNIT_Trainer
from fastunit.compat.unit_trainer import UNIT_Trainer

__all__ = ["MUNIT_Trainer", "UNIT_Trainer"]
