"""The best checkpoint of a run, chosen on training images that are held out (`evaluate_every`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from fastunit.common.choices import DIRECTIONS
from fastunit.common.errors import CheckpointError, DataError
from fastunit.common.spread import spread
from fastunit.config import Config
from fastunit.data.discovery import Domains
from fastunit.data.file_list import Files
from fastunit.evaluation import distances, features
from fastunit.models.domain_pair import DomainPair, evaluating
from fastunit.training import checkpoint, held_out

EVERY, MOST, LEAST = 10, 200, 4  # every 10th training image is held out, 4 to 200 of a domain
NAME = "best.pt"
_logger = logging.getLogger(__name__)


def split(domains: Domains, config: Config) -> tuple[Domains, Domains | None]:
    """Return the images to train on, and those held out as the test sets of a second `Domains`.

    With evaluate_every=0 nothing is held out. The test sets are in the first result only.

    Raises:
        DataError: a domain has too few training images.
    """
    if not config.evaluate_every:
        return domains, None
    kept, held = {}, {}
    for name in ("train_a", "train_b"):
        found = getattr(domains, name)
        chosen = spread(found, min(MOST, max(LEAST, len(found) // EVERY)))
        if len(found) < 2 * LEAST:
            raise DataError(
                f"evaluate_every holds out {LEAST} or more of a domain's training images, but "
                f"{name} has only {len(found)}; set evaluate_every=0"
            )
        held[name] = Files(chosen)
        without = set(held[name].names)
        kept[name] = Files(file for file in Files(found).names if file not in without)
    training = Domains(kept["train_a"], kept["train_b"], domains.test_a, domains.test_b)
    return training, Domains((), (), held["train_a"], held["train_b"])


class Best:
    """Measures the generators on held-out images and keeps the best checkpoint.

    The measure is the kernel distance of EfficientNet-Lite0's features between translations and
    the target's held-out images, averaged over both directions: no test image is used.

    Args:
        config: the run's configuration.
        held: the held-out images, as test sets.
        device: where everything runs.

    Raises:
        UserError: the extra `evaluate` is not installed.
    """

    def __init__(self, config: Config, held: Domains, device: torch.device) -> None:
        self._config, self._device = config, device
        self._extractor = features.load("efficientnet", None, device)
        self._files = {"a": held.test_a, "b": held.test_b}
        self._real = {
            name: features.of_all(self._extractor, self._read(name)) for name in self._files
        }
        self.value, self.iteration = float("inf"), 0  # of what is kept
        self.lowest, self.since = self.value, self.iteration  # of what was measured

    def resume(self, run_dir: Path, iteration: int) -> None:
        """Go on with the best checkpoint of a run's folder, unless it is of a later iteration."""
        path = run_dir / checkpoint.FOLDER / NAME
        if not path.is_file():
            return
        try:
            state = checkpoint.load(path)
            if not isinstance(state.get("held_out"), float):
                raise CheckpointError(f"{path} has no held_out")
        except CheckpointError as error:
            _logger.warning("%s; the best checkpoint is looked for anew", error)
            return
        if state["iteration"] <= iteration:
            self.value, self.iteration = state["held_out"], state["iteration"]
            self.lowest, self.since = self.value, self.iteration

    @torch.no_grad()
    def measure(self, pair: DomainPair) -> dict[str, float]:
        """Return held_out_a2b, held_out_b2a and their mean, held_out."""
        found = {}
        for way in DIRECTIONS:
            with evaluating(pair):
                translations = (pair.translate(x, way) for x in self._read(way[0]))
                made = features.of_all(self._extractor, translations)
            found[f"held_out_{way}"] = distances.kernel(made, self._real[way[-1]])
        return found | {"held_out": sum(found.values()) / len(found)}

    def keep(self, value: float, state: dict[str, Any], run_dir: Path) -> bool:
        """Write best.pt if the value is the lowest so far; return whether it is.

        Raises:
            StorageError: it cannot be written; the previous one stays.
        """
        if value < self.lowest:
            self.lowest, self.since = value, state["iteration"]
        if not value < self.value:
            return False
        checkpoint.write({**state, "held_out": value}, run_dir / checkpoint.FOLDER / NAME)
        self.value, self.iteration = value, state["iteration"]
        return True

    def _read(self, name: str) -> held_out.Images:
        domain = self._config.domain(name)
        return held_out.read(
            self._files[name], domain, self._config, self._config.crop, self._device
        )
