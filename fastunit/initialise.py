"""Weight initialisation by the names of the release's `init` key."""

from __future__ import annotations

import math

from torch import nn

from fastunit.config import INITS
from fastunit.kernels import checks


def initialise(module: nn.Module, init: str) -> None:
    """Initialise every convolution and linear layer in place; their biases become 0.

    init: "gaussian" N(0, 0.02); "xavier" normal, gain sqrt(2) (Glorot and Bengio 2010);
    "kaiming" normal, fan-in (He et al. 2015); "orthogonal", gain sqrt(2); "default" leaves
    PyTorch's own weights. Raises ValueError for any other name.
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
