"""Which networks a configuration asks for."""

from __future__ import annotations

from fastunit.config import Config
from fastunit.coupled import Coupled
from fastunit.paper_unit import PaperUNIT
from fastunit.unit import UNIT


def networks(config: Config) -> Coupled:
    """Return new networks of the kind that ``config.network`` names, initialised."""
    return PaperUNIT(config) if config.network == "paper" else UNIT(config)
