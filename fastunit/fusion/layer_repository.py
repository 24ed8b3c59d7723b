"""A layer repository for the `kernels` package of Hugging Face: norms on the fused operations.

`write` makes a folder that `kernels.LocalLayerRepository` loads; `kernelize` then puts the layers'
forward in place of a network's own. The layers are stateless, work with torch.compile, and need
fastunit to be installed: the folder is for one's own machines, not for the hub.
"""

from __future__ import annotations

import json
from pathlib import Path

VARIANT = "build/torch-universal"
LAYERS = ("InstanceNorm2d", "UnitLayerNorm")
_METADATA = {
    "id": "fastunit_layers",
    "name": "fastunit-layers",
    "version": 1,
    "license": "Apache-2.0",
    "python-depends": [],
    "backend": {"type": "cpu"},  # the folder's name says that it is for all
}
_CODE = '''"""Stateless layers: parameters are those of the module whose forward they replace."""

from torch import nn

from fastunit.kernels import instance_norm_act, norm_act


class InstanceNorm2d(nn.Module):
    """nn.InstanceNorm2d without running statistics."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input):
        if self.track_running_stats:
            raise ValueError("InstanceNorm2d of fastunit has no running statistics")
        return instance_norm_act(input, weight=self.weight, bias=self.bias, eps=self.eps)


class UnitLayerNorm(nn.Module):
    """UNIT's and MUNIT's layer norm, with gamma and beta [C] where `affine` is set."""

    can_torch_compile = True
    has_backward = True

    def forward(self, x):
        affine = {"gamma": self.gamma, "beta": self.beta} if self.affine else {}
        return norm_act(x, norm="ln", eps=self.eps, **affine)
'''


def write(folder: str | Path) -> Path:
    """Write the repository.

    Args:
        folder: it is made where it does not exist.

    Returns:
        The folder, for ``LocalLayerRepository(folder, layer_name="InstanceNorm2d")``; the layers
            are in `LAYERS`.
    """
    variant = Path(folder) / VARIANT
    variant.mkdir(parents=True, exist_ok=True)
    (variant / "metadata.json").write_text(json.dumps(_METADATA), encoding="utf-8")
    (variant / "__init__.py").write_text("from . import layers  # noqa: F401\n", encoding="utf-8")
    (variant / "layers.py").write_text(_CODE, encoding="utf-8")
    return Path(folder)
