"""ONNX export: PyTorch's own operators, without asking for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _flags

from fastunit import Conv2dBlock, LayerNorm, ResBlock
from fastunit.models.layers import UpsampleConv2dBlock


def network() -> nn.Module:
    return nn.Sequential(
        Conv2dBlock(3, 8, 4, 2, 1, "in", "relu", "reflect"),
        ResBlock(8, "in", "lrelu", "zero"),
        LayerNorm(8),
        UpsampleConv2dBlock(8, 3, 5, 2, "ln", "tanh", "reflect"),
    ).eval()


def test_an_export_to_onnx_has_no_operator_of_ours(monkeypatch):
    def targets() -> set[str]:
        program = torch.export.export(network(), (torch.rand(1, 3, 16, 16),), strict=False)
        return {str(node.target) for node in program.graph.nodes}

    assert any("fastunit" in target for target in targets())
    monkeypatch.setattr(_flags, "_is_onnx_exporting", True)
    assert not any("fastunit" in target for target in targets())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_an_exported_network_computes_the_same(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs onnx and onnxscript: pip install onnxscript")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    model, x = network(), torch.rand(1, 3, 16, 16) * 2 - 1
    options = {} if dynamo else {"opset_version": 18}
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=dynamo, **options)
    from onnx.reference import ReferenceEvaluator

    saved = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in saved.graph.node} <= {""}
    found = ReferenceEvaluator(saved).run(None, {saved.graph.input[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-5)
