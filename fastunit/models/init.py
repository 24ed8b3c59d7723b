"""Weight initialisation by the names of the release's `init` key, and equal starts."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastunit.common.choices import INITS, Init
from fastunit.kernels.common import checks


def initialise(module: nn.Module, init: Init) -> None:
    """Initialize every convolution and linear layer in place; their biases become 0.

    Args:
        module: whose layers are initialized, however deep they lie.
        init: "gaussian" N(0, 0.02); "xavier" normal, gain sqrt(2) (Glorot and Bengio 2010);
            "kaiming" normal, fan-in (He et al. 2015); "orthogonal", gain sqrt(2); "default"
            leaves PyTorch's own weights.

    Raises:
        ValueError: init is another name.
    """
    checks.choice("init", init, INITS)
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        if init == "gaussian":
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif init == "xavier":
            nn.init.xavier_normal_(layer.weight, gain=math.sqrt(2))
        elif init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_in")
        elif init == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def copy_matching(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy the source's parameters and buffers into the target's of the same name and shape.

    What only one of them has, or has in another shape (the first and last convolution of domains
    with different channels), is left alone. The two share no memory afterwards unless they did
    before.

    Args:
        source: what is copied.
        target: what is written to, in place.

    Returns:
        The names in the target's state_dict of what was left alone.
    """
    given, left = source.state_dict(), []
    for name, value in target.state_dict().items():  # views of the target's own memory
        if name in given and given[name].shape == value.shape:
            value.copy_(given[name])
        else:
            left.append(name)
    return left
