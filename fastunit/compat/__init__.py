"""The 2018 release's names, for code that was written for it.

`UNIT_Trainer` and `MUNIT_Trainer` are the trainer classes.
``python -m fastunit.compat train.py --config FILE`` runs a script of the release in its checkout
with our modules in place of its `trainer`, `networks`, `utils` and `data`.
"""

from fastunit.compat.hyperparameters import ATTRIBUTES, MUNIT_ATTRIBUTES
from fastunit.compat.munit_trainer import MUNIT_Trainer
from fastunit.compat.unit_trainer import UNIT_Trainer

__all__ = ["ATTRIBUTES", "MUNIT_ATTRIBUTES", "MUNIT_Trainer", "UNIT_Trainer"]
