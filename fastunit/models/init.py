"""Weight initialization by the names of the `init` key; copying weights between networks."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastunit.common.choices import INITS, Init
from fastunit.kernels.common import checks


def initialise(module: nn.Module, init: Init) -> None:
    """Initialize every convolution and linear layer in place; their biases become 0.

    Args:
        module: its layers are initialized recursively.
        init: "gaussian" N(0, 0.02); "xavier" normal, gain sqrt(2) (Glorot and Bengio 2010);
            "kaiming" normal, fan-in (He et al. 2015); "orthogonal", gain sqrt(2); "default"
            leaves PyTorch's own weights.

    Raises:
        ValueError: an unknown name.
    """
    checks.choice("init", init, INITS)
    for layer in module.modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        own = layer._parameters
        weight = own["weight_bar" if "weight_bar" in own else "weight"]  # of `SpectralNorm`
        assert weight is not None
        if init == "gaussian":
            nn.init.normal_(weight, 0.0, 0.02)
        elif init == "xavier":
            nn.init.xavier_normal_(weight, gain=math.sqrt(2))
        elif init == "kaiming":
            nn.init.kaiming_normal_(weight, a=0, mode="fan_in")
        elif init == "orthogonal":
            nn.init.orthogonal_(weight, gain=math.sqrt(2))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def copy_matching(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy parameters and buffers from source to target if names and shapes agree.

    Others (the first and last convolutions of domains with different channels) are not changed.
    The values are copied; the modules do not share memory afterwards.

    Args:
        source: the module to copy from.
        target: the module to copy to, in place.

    Returns:
        The names in the target's state_dict that were not changed.
    """
    given, left = source.state_dict(), []
    for name, value in target.state_dict().items():  # views of the target's own memory
        if name in given and given[name].shape == value.shape:
            value.copy_(given[name])
        else:
            left.append(name)
    return left
