"""The 2018 release's trainer: code written for it runs after this one import is changed.

from fastunit.compat import UNIT_Trainer
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastunit import files, release
from fastunit.config import Config, from_dict
from fastunit.errors import CheckpointError
from fastunit.objective import Losses, Noise
from fastunit.perceptual import Perceptual, load_perceptual
from fastunit.step import TrainStep
from fastunit.typed import build
from fastunit.unit import UNIT

# The release's attribute for each of ours. Its cyc names say whose cycle, ours whose image.
ATTRIBUTES = {
    "discriminator_a": "loss_dis_a",
    "discriminator_b": "loss_dis_b",
    "discriminator_total": "loss_dis_total",
    "adversarial_a": "loss_gen_adv_a",
    "adversarial_b": "loss_gen_adv_b",
    "reconstruction_a": "loss_gen_recon_x_a",
    "reconstruction_b": "loss_gen_recon_x_b",
    "kl_a": "loss_gen_recon_kl_a",
    "kl_b": "loss_gen_recon_kl_b",
    "cycle_a": "loss_gen_cyc_x_a",
    "cycle_b": "loss_gen_cyc_x_b",
    "cycle_kl_a": "loss_gen_recon_kl_cyc_aba",
    "cycle_kl_b": "loss_gen_recon_kl_cyc_bab",
    "perceptual_a": "loss_gen_vgg_a",
    "perceptual_b": "loss_gen_vgg_b",
    "generator_total": "loss_gen_total",
}
DISCRIMINATOR_LOSSES = [name for name in ATTRIBUTES if name.startswith("discriminator_")]
GENERATOR_LOSSES = [name for name in ATTRIBUTES if name not in DISCRIMINATOR_LOSSES]
WEIGHTS = ("gan_w", "recon_x_w", "recon_kl_w", "recon_x_cyc_w", "recon_kl_cyc_w", "identity_w")
WEIGHTS += ("vgg_w",)


class UNIT_Trainer(UNIT):
    """Networks, optimisers and schedules under the release's names.

    Args:
        hyperparameters: the mapping of a release YAML file. Keys that neither release nor
            fastunit knows are left alone with a warning; wrong values raise ValueError.

    Attributes: gen_a, gen_b, dis_a, dis_b, gen_opt, dis_opt, gen_scheduler, dis_scheduler, and
    after the updates the losses of `ATTRIBUTES` as detached scalars (0 where a term is off).
    Works on any device and in float32 or float64: use ``.to(...)`` or ``.cuda()``. Multiplies in
    the precision that PyTorch is set to (autocast, tf32) unless the mapping has `precision`.
    """

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        config = _config(hyperparameters)
        super().__init__(config)
        perceptual = load_perceptual(config.vgg_model_path) if config.vgg_w > 0 else None
        self.vgg = perceptual
        self.config = config
        self._step = TrainStep(self, config, perceptual)
        for name in ATTRIBUTES.values():
            setattr(self, name, 0)

    dis_opt = property(lambda self: self._step.dis_opt)
    gen_opt = property(lambda self: self._step.gen_opt)
    dis_scheduler = property(lambda self: self._step.dis_scheduler)
    gen_scheduler = property(lambda self: self._step.gen_scheduler)

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translations x_ab and x_ba without noise."""
        self.eval()
        x_ab, x_ba = self.translate(x_a, "a2b"), self.translate(x_b, "b2a")
        self.train()
        return x_ab, x_ba

    def dis_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        hyperparameters: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Update the discriminators; `noise` holds the unit normals under "a" and "b".

        `hyperparameters` gives this update's loss weights, as in the release; None keeps those
        of the constructor.
        """
        self._weigh(hyperparameters)
        self._publish(self._step.dis_update(x_a, x_b, noise), DISCRIMINATOR_LOSSES)

    def gen_update(
        self,
        x_a: Tensor,
        x_b: Tensor,
        hyperparameters: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> None:
        """Update the generators; `noise` holds unit normals under "a", "b", "ba" and "ab"."""
        self._weigh(hyperparameters)
        self._publish(self._step.gen_update(x_a, x_b, noise), GENERATOR_LOSSES)

    def update_learning_rate(self) -> None:
        """Advance the schedules by one iteration."""
        self._step.update_learning_rate()

    @torch.no_grad()
    def sample(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, ...]:
        """Return x_a, its reconstruction, x_ab, x_b, its reconstruction, x_ba; no noise."""
        self.eval()
        h_a, h_b = self.gen_a.code(x_a), self.gen_b.code(x_b)
        outputs = (
            x_a,
            self.gen_a.decode(h_a),
            self.gen_b.decode(h_a),
            x_b,
            self.gen_b.decode(h_b),
            self.gen_a.decode(h_b),
        )
        self.train()
        return outputs

    def recon_criterion(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean absolute difference, a scalar."""
        return (input - target).abs().mean()

    def compute_vgg_loss(self, vgg: Perceptual, img: Tensor, target: Tensor) -> Tensor:
        """Return the perceptual distance of two images, a scalar; `vgg` is the attribute `vgg`."""
        return vgg(img, target)

    def save(self, snapshot_dir: str | Path, iterations: int) -> None:
        """Write gen_%08d.pt and dis_%08d.pt, numbered iterations + 1, and optimizer.pt."""
        folder = Path(snapshot_dir)
        release.save_networks(self, folder, iterations + 1)
        optimizers = {"gen": self.gen_opt.state_dict(), "dis": self.dis_opt.state_dict()}
        files.save(optimizers, folder / "optimizer.pt")

    def resume(
        self, checkpoint_dir: str | Path, hyperparameters: Mapping[str, Any] | None = None
    ) -> int:
        """Load the newest files that `save`, or the release, wrote; return their iteration.

        Raises CheckpointError when there are none or they do not fit the networks.
        """
        folder = Path(checkpoint_dir)
        iteration = _newest(folder)
        release.load_networks(self, folder / f"gen_{iteration:08d}.pt", expect="gen")
        release.load_networks(self, folder / f"dis_{iteration:08d}.pt", expect="dis")
        self._step.load_release_optimizers(files.read(folder / "optimizer.pt"), iteration)
        return iteration

    def _weigh(self, hyperparameters: Mapping[str, Any] | None) -> None:
        """Set the next update's loss weights, read and checked as those of the constructor."""
        given = {key: hyperparameters[key] for key in WEIGHTS if key in (hyperparameters or ())}
        checked = build(Config, given, "")
        weights = {key: getattr(checked, key) for key in given}
        self._step.config = replace(self.config, **weights)

    def _publish(self, losses: Losses, kinds: Iterable[str]) -> None:
        for name in kinds:
            setattr(self, ATTRIBUTES[name], losses.get(name, 0))


def _config(hyperparameters: Mapping[str, Any]) -> Config:
    known = {spec.name for spec in fields(Config)}
    foreign = [key for key in hyperparameters if key not in known]
    if foreign:
        warnings.warn(f"unused hyperparameters: {', '.join(foreign)}", stacklevel=3)
    given = {key: value for key, value in hyperparameters.items() if key in known}
    config = from_dict({"precision": "inherit", "compile": "off"} | given)
    if config.network != "release":
        raise ValueError(f"network={config.network}: UNIT_Trainer has the 2018 release's networks")
    return config


def _newest(folder: Path) -> int:
    numbers = [
        int(match[1])
        for path in folder.glob("gen_*.pt")
        if (match := re.fullmatch(r"gen_(\d{8})\.pt", path.name))
    ]
    if not numbers:
        raise CheckpointError(f"{folder} holds no gen_XXXXXXXX.pt to resume from")
    return max(numbers)
