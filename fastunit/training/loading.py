"""Trained networks from their files, ready to translate."""

from __future__ import annotations

from pathlib import Path

import torch

from fastunit.common.choices import Precision
from fastunit.common.errors import CheckpointError, ConfigError
from fastunit.config import Config
from fastunit.inference.translator import Translator
from fastunit.training import checkpoint


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    *,
    config: Config | None = None,
) -> Translator:
    """Load trained generators for translating images.

    Args:
        path: a run's folder (its newest checkpoint that can be read), a checkpoint of fastunit,
            or a release's gen_*.pt. Of averaged generators (`ema_decay`) the average is taken.
        device: "cpu", "cuda", "cuda:N" or a torch.device; None is the first GPU, or the CPU where
            there is none.
        precision: compute dtype of convolutions: "bf16", "tf32", "fp32" or "inherit"; None is
            bf16 on GPUs that have it, else fp32.
        config: the configuration of a release's gen_*.pt that has no config.yaml beside it, or in
            the folder above; all other files hold theirs.

    Returns:
        The generators in evaluation mode on the device, with the configuration of their training.

    Raises:
        CheckpointError: the file is missing or damaged, holds other networks or values that are
            not finite, or no configuration is known.
        ConfigError: `config` is given for a file that holds its own or is unreadable, or the
            device does not have the precision.
        UserError: the device is not there.
    """
    networks, used = checkpoint.load_generators(Path(path), config)
    if config is not None and used is not config:
        raise ConfigError(f"{path} has its own configuration; leave out config (--config)")
    if not all(parameter.isfinite().all() for parameter in networks.parameters()):
        raise CheckpointError(f"{path} holds weights that are NaN or infinite")
    return Translator(networks, used, device=device, precision=precision)
