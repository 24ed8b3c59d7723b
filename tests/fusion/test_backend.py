"""The backend of torch.compile: fused operations, and inductor for the rest."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastunit
from fastunit.fusion import backend, rules
from tests.support.checkout import ROOT
from tests.support.networks import CycleGenerator, PatchGan


@pytest.fixture(autouse=True)
def _everything(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(rules, "loss", lambda chain: None)


def step(model: nn.Module, network: nn.Module, side: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    y = network(torch.rand(2, 3, side, side) * 2 - 1)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return [y.detach(), *gradients]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_network_computes_the_same(dynamic):
    backend.register()
    model = PatchGan()
    compiled = torch.compile(model, backend="fastunit", fullgraph=True, dynamic=dynamic)
    for side in (32, 48):
        for mine, wanted in zip(step(model, compiled, side), step(model, model, side), strict=True):
            limit = 1e-4 * (1 + wanted.abs().max().item())
            torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=limit)


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, None),
        ({"options": {"max_autotune": False}}, {"max_autotune": False}),
        ({"mode": "reduce-overhead"}, {"triton.cudagraphs": True}),
    ],
)
def test_its_graphs_have_the_operators(monkeypatch, given, settings):
    seen = []

    def compile_fx(module, inputs, config_patches):
        seen.append((str(module.graph), config_patches))
        return module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    backend.register()
    model = PatchGan()
    compiled = torch.compile(model, backend="fastunit", **given)
    step(model, compiled, 32)
    graph, options = seen[0]
    assert graph.count("conv_norm_act](") == 5 and options == settings


def test_the_installed_package_has_its_entry_point():
    (target,) = re.findall(r'"fastunit = (fastunit\.fusion.*?)"', (ROOT / "setup.py").read_text())
    module, name = target.split(":")
    assert getattr(importlib.import_module(module), name) is backend.compile


def test_data_parallel(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = CycleGenerator()
        wanted = step(model, model, 32)
        parallel = DistributedDataParallel(fastunit.accelerate(model))
        for mine, other in zip(step(model, parallel, 32), wanted, strict=True):
            limit = 1e-4 * (1 + other.abs().max().item())
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=limit)
    finally:
        dist.destroy_process_group()
