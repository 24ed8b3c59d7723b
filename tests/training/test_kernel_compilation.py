"""Compiling a step's kernels before it, and `python -m fastunit.warm`; launches are recorded."""

from __future__ import annotations

import logging

import pytest
import torch
import triton

from fastunit import config, warm
from fastunit.common import cli, progress
from fastunit.kernels.common import runtime
from fastunit.kernels.common.variants import variants
from fastunit.training import kernel_compilation

TINY = ["gen.dim=4", "dis.dim=4", "gen.n_res=1", "dis.n_layer=2", "dis.num_scales=1"]
SMALL = [*TINY, "new_size=32", "crop_image_height=32", "crop_image_width=32", "batch_size=1"]

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


def launches(*overrides):
    return kernel_compilation.step_launches(config.load("photos", [*SMALL, *overrides]), 90)


def products(found):
    return [launch for launch in found if launch.kernel.fn.__name__ == "conv_gemm_kernel"]


def test_a_step_is_recorded_as_training_runs_it():
    before = torch.get_rng_state()
    found = products(launches())
    assert torch.equal(torch.get_rng_state(), before)
    assert not runtime.recording()
    # Mixed precision: bf16 frames and filters, and float32 biases.
    assert {launch.args[0].dtype for launch in found} == {torch.bfloat16}
    assert {launch.args[2].dtype for launch in found if launch.args[2] is not None} == {
        torch.float32
    }
    separate = products(launches("pair_domains=off"))
    assert len(separate) > len(found)


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", "tf32"), ("fp32", "ieee")])
def test_float32_is_recorded_as_it_is_multiplied(precision, wanted):
    found = products(launches(f"precision={precision}"))
    assert {launch.args[0].dtype for launch in found} == {torch.float32}
    assert {launch.constexprs["PRECISION"] for launch in found} == {wanted}


def test_what_the_cache_lacks_is_compiled_with_a_progress_line(monkeypatch, caplog, capsys):
    missing = []

    def compile_missing(found, workers, show):
        missing.extend(found)
        for done in range(len(missing) + 1):
            show(done, len(missing))
        return len(missing)

    monkeypatch.setattr(kernel_compilation, "compile_missing", compile_missing)
    settings = config.load("photos", SMALL)
    with caplog.at_level(logging.INFO), progress.shown(True):
        count = kernel_compilation._compile(settings, 90, 114)
    assert count == len(missing) == len(variants(launches(), 90))
    assert f"compiled {count} of {count} kernel variants in" in caplog.text
    assert "compiling kernels" in capsys.readouterr().err


def test_a_failure_is_left_to_the_step(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(kernel_compilation, "compile_missing", fail)
    assert kernel_compilation._compile(config.load("photos", SMALL), 90, None) == 0
    assert "kernels are compiled during the first step: no ptxas" in caplog.text


def test_only_a_gpu_that_runs_them_is_asked():
    settings = config.load("photos", SMALL)
    assert kernel_compilation.compile_kernels(settings, torch.device("cpu")) == 0


# ---- the command


def arguments(out, *more):
    overrides = [word for key in TINY for word in ("--set", key)]
    return ["--size", "32", "--batch", "1", "2", "--out", str(out), *overrides, *more]


def test_the_command_says_what_it_found(monkeypatch, tmp_path, capsys):
    asked = []

    def compile_missing(found, workers, show):
        asked.extend(found)
        show(0, 7)
        show(7, 7)
        return 7

    monkeypatch.setattr(warm, "compile_missing", compile_missing)
    before = triton.knobs.cache.dir
    assert warm.main(arguments(tmp_path / "x", "--arch", "80")) == 0
    assert triton.knobs.cache.dir == before
    output = capsys.readouterr()
    assert len({variant.key for variant in asked}) == len(asked) > 10
    assert {variant.target.arch for variant in asked} == {80}
    words = f"{len(asked)} kernel variants for compute capability 8.0: 7 compiled"
    assert output.out.startswith(words)
    assert output.out.endswith(f"use them with TRITON_CACHE_DIR={tmp_path / 'x'}\n")
    assert "compiling kernels: 7 of 7" in output.err


def test_an_old_gpu_is_refused_in_one_line(capsys):
    assert warm.main(["--arch", "75"]) == cli.USAGE_ERROR
    assert capsys.readouterr().err == "error: --arch 75: the kernels need at least 80\n"


@pytest.mark.slow
def test_a_second_call_finds_everything(tmp_path, capsys):
    words = arguments(tmp_path, "--set", "share.enc=0")
    assert warm.main(words) == 0
    first = capsys.readouterr().out
    count = int(first.split()[0])
    assert f": {count} compiled, 0 were there" in first and ", 0.0 MiB" not in first
    assert warm.main(words) == 0
    assert f"{count} kernel variants" in (again := capsys.readouterr().out)
    assert f": 0 compiled, {count} were there" in again
