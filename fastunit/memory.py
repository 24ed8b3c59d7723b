"""What a training step will keep in memory, found without running it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fastunit.config import Config
from fastunit.networks import UNIT
from fastunit.objective import discriminator_losses, generator_losses
from fastunit.perceptual import Perceptual
from fastunit.step import frozen

ADAM_COPIES = 4  # a weight, its gradient and Adam's two moments


def parameter_counts(config: Config) -> dict[str, int]:
    """Return the number of parameters of each part; shared blocks are counted once, apart."""
    with torch.device("meta"):
        unit = UNIT(config)
    gen_a, gen_b = set(unit.gen_a.parameters()), set(unit.gen_b.parameters())
    count = {
        "generator a": gen_a - gen_b,
        "generator b": gen_b - gen_a,
        "shared by the generators": gen_a & gen_b,
        "discriminator a": set(unit.dis_a.parameters()),
        "discriminator b": set(unit.dis_b.parameters()),
    }
    return {name: sum(p.numel() for p in group) for name, group in count.items()}


def expected_bytes(config: Config) -> dict[str, int]:
    """Return the bytes that weights (with optimiser) and saved activations take, float32.

    The activations are those that one update's forward pass saves for its backward, at the
    training crop; found on tensors without data, so nothing is allocated. Temporary buffers of
    the libraries come on top.
    """
    with torch.device("meta"):
        unit = UNIT(config)
        perceptual = Perceptual() if config.vgg_w > 0 else None
        batch, crop = config.batch_size, config.crop
        x_a = torch.empty(batch, config.input_dim_a, *crop)
        x_b = torch.empty(batch, config.input_dim_b, *crop)
        dis = _saved_bytes(unit, lambda: discriminator_losses(unit, x_a, x_b, config))
        with frozen(unit.dis_a, unit.dis_b):
            gen = _saved_bytes(
                unit, lambda: generator_losses(unit, x_a, x_b, config, perceptual=perceptual)
            )
    weights = sum(p.numel() * p.element_size() for p in unit.parameters())
    copies = ADAM_COPIES + (1 if config.ema_decay else 0)
    return {"weights and optimisers": weights * copies, "activations": max(dis, gen)}


def _saved_bytes(unit: UNIT, forward: object) -> int:
    """Return the bytes of the distinct storages that `forward` saves, weights left out."""
    weights = {p.untyped_storage()._cdata for p in unit.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no storage is used again

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del losses
    return total
