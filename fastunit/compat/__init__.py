"""The 2018 release's names, for code that was written for it.

`UNIT_Trainer` is its trainer class. ``python -m fastunit.compat train.py --config FILE`` runs a
script of the release in its checkout with our modules in place of its `trainer`, `networks`,
`utils` and `data`.
"""

from fastunit.compat.hyperparameters import ATTRIBUTES
from fastunit.compat.unit_trainer import UNIT_Trainer

__all__ = ["ATTRIBUTES", "UNIT_Trainer"]
