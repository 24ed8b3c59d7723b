"""Loading trained networks for translation."""

from __future__ import annotations

from pathlib import Path

import torch

from fastunit.common.choices import Precision
from fastunit.common.errors import ConfigError
from fastunit.config import Config
from fastunit.inference.exported import SUFFIXES, networks_file
from fastunit.inference.translator import Translator
from fastunit.training import checkpoint


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    precision: Precision | None = None,
    *,
    config: Config | None = None,
    memory: int | None = None,
) -> Translator:
    """Load trained generators for translating images.

    Args:
        path: a run's folder (its newest readable checkpoint), a checkpoint of fastunit, or a
            release's gen_*.pt. If it has averaged generators (`ema_decay`), these are loaded. Or a
            file of `fastunit.export`: .onnx or .pt2 (of one direction), or .safetensors.
        device: "cpu", "cuda", "cuda:N" or a torch.device; None is the first GPU, or the CPU if
            there is none.
        precision: compute dtype of convolutions and matmuls: "bf16", "tf32", "fp32" or "inherit";
            None is bf16 where the GPU supports it, else fp32.
        config: needed only for a release's gen_*.pt without a config.yaml in its folder or the
            folder above; all other files contain theirs.
        memory: as in `Translator`.

    Returns:
        The generators in evaluation mode on the device, with the configuration of their training.

    Raises:
        CheckpointError: the file is missing or damaged, holds other networks or non-finite
            weights, or there is no configuration.
        ConfigError: `config` is given although the file has its own, or the device does not
            support the precision.
        UserError: the device does not exist.
    """
    if Path(path).suffix in SUFFIXES:
        networks, used = networks_file(Path(path))
    else:
        networks, used = checkpoint.load_generators(Path(path), config)
    if config is not None and used is not config:
        raise ConfigError(f"{path} has its own configuration; leave out config (--config)")
    return Translator(networks, used, device=device, precision=precision, memory=memory)
