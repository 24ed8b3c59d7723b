"""The layer repository: its layers, and that the `kernels` package of Hugging Face takes it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastunit.fusion import layer_repository
from tests.support.checkout import ROOT
from tests.support.networks import SampleLayerNorm
from tests.support.tensors import rand

WORK = """
import sys
from pathlib import Path

import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_forward_from_hub
from kernels import use_kernel_mapping
from torch import nn


@use_kernel_forward_from_hub("InstanceNorm2d")
class Norm(nn.InstanceNorm2d):
    pass


network = nn.Sequential(nn.Conv2d(3, 4, 3), Norm(4, affine=True), nn.ReLU())
x = torch.rand(2, 3, 8, 8)
wanted, mode = network(x), Mode.TRAINING | Mode.TORCH_COMPILE
repository = LocalLayerRepository(Path(sys.argv[1]), layer_name="InstanceNorm2d")
with use_kernel_mapping({"InstanceNorm2d": {"cpu": {mode: repository}}}):
    network = kernelize(network, mode=mode, device="cpu")
assert network[1].forward.__func__.__module__ == "fastunit_layers.layers"
torch.testing.assert_close(network(x), wanted)
network(x).sum().backward()
compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(x), wanted)
"""


def test_its_layers_are_stateless_and_right(tmp_path):
    variant = layer_repository.write(tmp_path) / layer_repository.VARIANT
    assert json.loads((variant / "metadata.json").read_text())["license"] == "Apache-2.0"
    spec = importlib.util.spec_from_file_location("written", variant / "layers.py")
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    x = rand(2, 4, 5, 6)
    own = nn.InstanceNorm2d(4, affine=True).double(), SampleLayerNorm(4).double()
    own[1].affine = True
    for name, module in zip(layer_repository.LAYERS, own, strict=True):
        layer = getattr(layers, name)
        assert layer.__init__ is nn.Module.__init__
        torch.testing.assert_close(layer.forward(module, x), module(x))
    tracked = nn.InstanceNorm2d(4, track_running_stats=True)
    with pytest.raises(ValueError, match="no running statistics"):
        layers.InstanceNorm2d.forward(tracked, x)


def test_the_kernels_package_takes_it(tmp_path):
    # In a process of its own: here the folder kernels/ of the checkout has that name.
    script = tmp_path / "work.py"
    script.write_text(WORK)
    asked = "import kernels; kernels.LocalLayerRepository"
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable, "-I"]
    found = subprocess.run([*command, "-c", asked], capture_output=True, cwd=tmp_path, check=False)
    if found.returncode:
        pytest.skip("needs the package kernels of Hugging Face: pip install kernels")
    layer_repository.write(tmp_path / "repository")
    code = f"import sys; sys.path.append({str(ROOT)!r})\n" + WORK
    script.write_text(code)
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "repository")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
