"""Compiling recorded launches: what is compiled ahead is what a launch looks for."""

from __future__ import annotations

import shutil

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from bench.gpu import every_kernel
from fastunit.kernels import conv_norm_act
from fastunit.kernels.common import dependent, runtime
from fastunit.kernels.common.variants import compile_missing, folder, specialise, variants

ARCH = 90

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


class Driver:
    """Triton's driver of a GPU that is not there: enough of it to compile for a launch."""

    def get_current_target(self):
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def cache(tmp_path):
    """Return Triton's cache folder, an empty one."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        yield tmp_path / "cache"


@pytest.fixture
def run(monkeypatch):
    """Return a function that launches as runtime.launch does, but for the GPU's own part.

    It returns for each launch the key under which JITFunction.run looked for the kernel, and
    whether Triton's cache had it.
    """
    looked = []

    def listen(*, metadata, cache_hit, **_):
        looked.append((metadata["hash"], cache_hit))

    def launch_all(launches):
        looked.clear()
        for launch in launches:
            launch.kernel.device_caches.clear()  # what this process has compiled for its "GPU"
            launch.kernel.warmup(
                *launch.args,
                grid=launch.grid,
                num_warps=launch.num_warps,
                num_stages=launch.num_stages,
                **(dependent.options(ARCH) if dependent.ON else {}),
                **launch.constexprs,
            )
            launch.kernel.device_caches.clear()
        return list(looked)

    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(Driver())
    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    try:
        yield launch_all
    finally:
        driver._active = before


def block_launches():
    x = torch.zeros(2, 64, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.zeros(64, 64, 3, 3, requires_grad=True)
    with runtime.recorded_launches(ARCH) as launches, torch.autocast("cpu", torch.bfloat16):
        y = conv_norm_act(x, w, padding=1, norm="in", act="relu", impl="triton")
        y.backward(torch.zeros_like(y))
    return launches


@pytest.mark.slow
@pytest.mark.parametrize("is_dependent", [False, True])
def test_a_launch_finds_what_was_compiled_ahead(is_dependent, cache, run, monkeypatch):
    monkeypatch.setattr(dependent, "ON", is_dependent)
    launches = block_launches()
    found = variants(launches, ARCH)
    shown = []
    assert compile_missing(found, 2, lambda *counts: shown.append(counts)) == len(found) > 4
    assert shown == [(done, len(found)) for done in range(len(found) + 1)]
    looked = run(launches)
    assert len(looked) == len(launches) and all(hit for _, hit in looked)
    assert [key for key, _ in looked] == [specialise(x, ARCH).cache_key for x in launches]
    assert compile_missing(found, 2, pytest.fail) == 0


@pytest.mark.slow
def test_a_moved_folder_is_mended(cache, run, tmp_path):
    launches = block_launches()[:1]
    (variant,) = variants(launches, ARCH)
    compile_missing([variant], 1, lambda *_: None)
    moved = tmp_path / "elsewhere"
    shutil.move(cache, moved)
    assert folder(variant) is None
    triton.knobs.cache.dir = str(moved)
    assert folder(variant).parent == moved
    assert [hit for _, hit in run(launches)] == [True]
    next(folder(variant).glob("*.cubin")).unlink()
    assert folder(variant) is None  # incomplete


def test_recorded_launches_are_specialised_as_the_jit_does(monkeypatch, cache, run):
    """Every kernel, on odd shapes: signature, constants, attributes and options are the same."""
    asked = []

    def compile(source, target, options, **_):
        asked.append((source.hash(), target, options))
        raise Stop

    class Stop(Exception):
        pass

    monkeypatch.setattr(triton.compiler, "compile", compile)
    launches = every_kernel.launches()
    assert len(launches) > 100
    for launch in launches[:: len(launches) // 60]:
        with pytest.raises(Stop):
            run([launch])
        variant = specialise(launch, ARCH)
        source, target, options = asked[-1]
        assert (source, target) == (variant.source.hash(), variant.target)
        assert options == variant.options.__dict__
