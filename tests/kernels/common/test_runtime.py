"""Choosing an implementation, and recording launches."""

from __future__ import annotations

import pytest
import torch

from fastunit.kernels import conv_norm_act
from fastunit.kernels.common import runtime
from fastunit.kernels.common.runtime import choose_impl, default_impl, recorded_launches
from tests.support.processes import python

X = torch.zeros(1, 8, 4, 4)


def test_auto_is_aten_on_the_cpu():
    assert choose_impl("auto", X) == "aten"
    assert choose_impl("aten", X) == "aten"


def test_the_default_can_be_set_for_a_block():
    with recorded_launches(90):
        with default_impl("triton"):
            assert choose_impl("auto", X) == "triton"
            assert choose_impl("aten", X) == "aten"
        assert choose_impl("auto", X) == "aten"


def test_the_environment_sets_the_default():
    code = "import torch; from fastunit.kernels import norm_act; norm_act(torch.ones(1, 1, 2, 2))"
    for value, message in (("triton", "needs CUDA"), ("cuda", "impl='cuda' must be one of")):
        child = python("-c", code, env={"FASTUNIT_IMPL": value})
        assert child.returncode == 1
        assert message in child.stderr.splitlines()[-1]


def test_importing_asks_no_device():
    code = (
        "import torch; torch.cuda.is_available = torch.cuda.get_device_capability = None; "
        "torch._C._cuda_init = torch._C._cuda_getDeviceCount = None; import fastunit.kernels"
    )
    child = python("-c", code)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("impl", ["cuda", None, ["aten"]])
def test_an_unknown_implementation_is_named(impl):
    with pytest.raises(ValueError, match="must be one of auto, triton, aten"):
        choose_impl(impl, X)


def test_recording_runs_nothing_and_ends():
    w = torch.zeros(8, 8, 3, 3)
    for arch in (80, 90, 100):
        with recorded_launches(arch) as launches:
            assert runtime.arch(X.device) == arch
            conv_norm_act(X, w, padding=1, norm="in", impl="triton")
        names = [launch.kernel.fn.__name__ for launch in launches]
        assert "conv_gemm_kernel" in names
        assert all(min(launch.grid) > 0 for launch in launches)
    assert not runtime.recording()


def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.setattr(runtime, "arch", lambda device: 75)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert choose_impl("auto", X) == "aten"
    with pytest.raises(ValueError, match=r"compute capability 8\.0, not 7\.5"):
        choose_impl("triton", X)
