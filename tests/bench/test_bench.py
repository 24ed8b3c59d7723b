"""The benchmarks' own arithmetic: the work and floor of a step; and the stages for a GPU."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu import measure
from bench.gpu.measure import Stage
from bench.model import costs, roofline
from bench.model.peaks import Ceilings
from bench.ops.layers import Layer, networks
from bench.step import ablations
from bench.step.baseline import BaselineStep
from fastunit import config
from fastunit.common.errors import ConfigError
from fastunit.models.perceptual import Perceptual

H100 = Ceilings(800, 3000)  # what KERNELS.md reckons with
SMALL = {
    "gen": {"dim": 4, "n_res": 1, "n_downsample": 1},
    "dis": {"dim": 4, "n_layer": 2, "num_scales": 2},
    "crop_image_height": 16,
    "crop_image_width": 24,
    "batch_size": 3,
}


def release(**keys) -> config.Config:
    """Return the release's 256x256 configuration."""
    return config.from_dict(keys)


def flops(kernels, field="direct") -> float:
    return sum(getattr(kernel, field) for kernel in kernels)


# ---- the work of a step


@pytest.mark.parametrize(
    ("network", "direct", "phase"),
    [("encoders", 48.5, 48.5), ("decoders", 93.6, 59.2), ("discriminators", 4.36, 4.36)],
)
def test_networks_have_the_flops_that_were_counted_by_hand(network, direct, phase):
    for found in getattr(networks(release()), network):
        layers = list(chain.from_iterable(found)) if network == "discriminators" else found
        assert sum(layer.flops for layer in layers) / 1e9 == pytest.approx(direct, rel=0.01)
        assert sum(layer.as_run().flops for layer in layers) / 1e9 == pytest.approx(phase, rel=0.01)


@pytest.mark.parametrize(("shared", "direct", "needed"), [(False, 2617, 1930), (True, 2333, 1715)])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_step_has_the_flops_that_were_counted_by_hand(batch, shared, direct, needed):
    kernels = costs.step(release(batch_size=batch, share_fakes=shared))
    assert flops(kernels) / batch / 1e9 == pytest.approx(direct, rel=0.01)
    assert flops(kernels, "needed") / batch / 1e9 == pytest.approx(needed, rel=0.01)


@pytest.mark.parametrize("cycle", [0, 10])
def test_flops_of_a_step_are_those_that_pytorch_counts_in_the_baseline(cycle):
    settings = config.from_dict(SMALL | {"share_fakes": False, "recon_x_cyc_w": cycle})
    images = torch.rand(2, settings.batch_size, 3, *settings.crop)
    with FlopCounterMode(display=False) as counter:
        BaselineStep(settings)(*images)
    # The baseline throws gradients away: of the discriminators' weights in the other update.
    scales = chain.from_iterable(networks(settings).discriminators)
    layers = chain.from_iterable(scales)
    wasted = settings.batch_size * sum(layer.flops for layer in layers)
    assert flops(costs.step(settings)) + wasted == counter.get_total_flops()


def test_flops_of_the_perceptual_term_are_those_that_pytorch_counts():
    plain, perceptual = (
        config.from_dict(SMALL | {"vgg_w": weight, "vgg_model_path": "x"}) for weight in (0, 1)
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = Perceptual()
        for _ in range(2):  # domains
            output = torch.empty(perceptual.batch_size, 3, *perceptual.crop, requires_grad=True)
            network(output, output.detach()).backward()
    added = flops(costs.step(perceptual)) - flops(costs.step(plain))
    assert added == counter.get_total_flops()


def test_flops_of_the_identity_term_are_those_that_pytorch_counts():
    plain, identity = (config.from_dict(SMALL | {"identity_w": weight}) for weight in (0, 5))
    a, b = BaselineStep(plain).gen_a, BaselineStep(plain).gen_b
    x_a, x_b = torch.rand(2, identity.batch_size, 3, *identity.crop)
    with FlopCounterMode(display=False) as counter:
        for encoded, decoded, x in ((b, a, x_a), (a, b, x_b)):
            decoded.dec(encoded.enc(x)).sum().backward()
    added = flops(costs.step(identity)) - flops(costs.step(plain))
    assert added == counter.get_total_flops()


def test_shared_decoder_blocks_run_once_over_both_codes():
    apart, shared = (release(share={"enc": 0, "dec": dec}) for dec in (0, 2))
    convolution = 2 * 64**2 * 9 * 256**2
    saved = flops(costs.step(apart)) - flops(costs.step(shared))
    # Two codes, two blocks of two, forward and both products backward.
    assert saved == 2 * 4 * 3 * convolution


def test_parts_of_a_batch_translate_for_themselves():
    whole, parts = (release(batch_size=8 // n, accumulate=n) for n in (1, 4))
    assert flops(costs.step(parts)) == flops(costs.step(release(batch_size=8, share_fakes=False)))
    assert flops(costs.step(whole)) < flops(costs.step(parts))


def test_a_block_moves_the_bytes_that_were_counted_by_hand():
    layer = Layer(256, 256, (64, 64), (64, 64), 3, 1, 1, norm=True)
    run = costs.Run(samples=8, element=2)
    kernels = list(run("block", [layer] * 3, ("dgrad", "wgrad")))
    middle = {kernel.name: kernel.bytes for kernel in kernels[len(kernels) // 3 :][:5]}
    tensor = 8 * 256 * 64**2 * 2
    weights = 9 * 256**2
    forward = middle["fprop"] - 2 * weights + middle["norm_act"]
    backward = middle["dgrad"] - 2 * weights + middle["wgrad"] - 4 * weights
    assert forward / tensor == pytest.approx(4.13, abs=0.01)
    assert (backward + middle["act backward"]) / tensor == pytest.approx(8.38, abs=0.01)


def test_issued_flops_count_the_halo_and_narrow_channels():
    first = Layer(3, 64, (256, 256), (256, 256), 7, 1, 3)
    last = Layer(64, 3, (256, 256), (256, 256), 7, 1, 3)
    inner = Layer(256, 256, (64, 64), (64, 64), 3, 1, 1)
    assert first.issued("fprop") / first.flops == pytest.approx(1.52, abs=0.01)
    assert last.issued("fprop") / last.flops == pytest.approx(5.33, abs=0.01)
    assert inner.issued("dgrad") / inner.flops == pytest.approx(1.063, abs=0.001)


# ---- the floor


def test_floor_of_the_release_is_near_the_one_reckoned_before():
    """25.5 ms at batch 8; 4.0 at 1, of 1.8 GB more than here, presumably partial sums of wgrad."""
    assert roofline.floor_ms(release(batch_size=8), H100) == pytest.approx(25.5, rel=0.10)
    moved = 1e3 * H100.seconds(0, 1.8e9)
    assert roofline.floor_ms(release(batch_size=1), H100) + moved == pytest.approx(4.0, rel=0.10)


def test_each_kernel_takes_the_longer_of_its_two_times():
    ceilings = Ceilings(tflop_per_s=2, gb_per_s=10)
    kernels = [
        costs.Kernel("x", "products", 0, 0, issued=4 * 10**9, bytes=10**6),
        costs.Kernel("x", "bytes", 0, 0, issued=10**6, bytes=30 * 10**6),
    ]
    assert roofline.total(kernels, ceilings).floor_ms == pytest.approx(2 + 3)


def test_roofline_prints_every_part_and_their_sum(capsys):
    size = ["crop_image_height=256", "crop_image_width=256", "new_size=256"]
    argv = [word for key in size for word in ("--set", key)]
    assert roofline.main(["--config", "photos", "--tflops", "400", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "256x256, batch 4: 400 TFLOP/s, 3000 GB/s"
    rows = {cells[0]: cells for line in lines[4:] for cells in [line.strip("| ").split(" | ")]}
    whole = [float(value) for value in rows.pop("**step**")[1:]]
    sums = np.sum([[float(value) for value in row[1:]] for row in rows.values()], axis=0)
    assert np.allclose(sums, whole, atol=0.05 * len(rows))


# ---- savings


def test_every_saving_can_be_switched_off_by_keys_that_exist():
    for name in ablations.ABLATIONS | ablations.GPU_ABLATIONS:
        keys = (ablations.ABLATIONS | ablations.GPU_ABLATIONS)[name].keys
        assert config.resolve({}, keys, {}) != config.from_dict({}) or not keys
    with pytest.raises(ConfigError):
        config.resolve({}, ["share_fake=false"], {})


# ---- the command for a GPU


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(quick=False, patience=90.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_is_refused_in_one_line(capsys):
    from fastunit.common import cli

    assert cli.guard(lambda: measure.main([])) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: bench.gpu.measure needs an NVIDIA GPU") and error.count("\n") == 1
    )


def test_stages_keep_to_their_seconds_and_to_those_that_are_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stages = {"a": 50, "b": 100, "c": 20}
    stages = {name: Stage(("x.py",), "x", seconds) for name, seconds in stages.items()}
    monkeypatch.setattr(measure, "STAGES", stages)
    planned = []
    for name, _, seconds in measure.planned(["a", "b", "c"], limit=120):
        planned.append((name, seconds))
        now[0] += seconds - 5 if name == "a" else seconds
    assert planned == [("a", 50), ("b", 75)]
    assert "c: left out, the 120 s are spent" in capsys.readouterr().out
    alone = [(name, seconds) for name, _, seconds in measure.planned(["c"], limit=60)]
    assert alone == [("c", 60)]


def test_stages_name_benchmarks_that_exist_and_leave_time_for_what_is_compiled():
    folder = measure.ROOT / "bench"
    assert all(
        (folder / name).is_file() for stage in measure.STAGES.values() for name in stage.files
    )
    names = list(measure.STAGES)
    before = sum(measure.STAGES[name].seconds for name in names[: names.index("strongest")])
    assert before + measure.PATIENCE <= measure.LIMIT and measure.LIMIT + measure.GRACE <= 8 * 60


def test_command_of_a_stage(options, tmp_path):
    stage, path = Stage(("step/bench_step.py",), "a or b", 60), tmp_path / "x.json"
    words = measure.command(stage, path, 42.5, H100, options)
    assert words[:5] == [sys.executable, "-m", "pytest", "bench/step/bench_step.py", "-q"]
    assert words[words.index("-k") + 1] == "a or b"
    assert {"--ceilings=800,3000", "--budget=42.5", "--patience=0"} < set(words)
    words = measure.command(stage._replace(compiled=True), path, 42.5, H100, options)
    assert "--patience=90.0" in words
    options.quick = True
    words = measure.command(stage, path, 42.5, H100, options)
    assert words[words.index("-k") + 1] == "(a or b) and not compiled"


def test_a_command_that_overruns_is_ended(monkeypatch):
    monkeypatch.setattr(measure, "GRACE", 0.2)
    python = [sys.executable, "-c"]
    start = time.monotonic()
    assert measure.run([*python, "import time; time.sleep(60)"], 0.1, os.environ) != 0
    assert time.monotonic() - start < 30
    assert measure.run([*python, "raise SystemExit(7)"], 30, os.environ) == 7


def test_names_of_files(monkeypatch, tmp_path):
    date = datetime.date(2026, 1, 31)
    assert measure.file_stem("NVIDIA H100 80GB HBM3", date) == "nvidia-h100-80gb-hbm3-2026-01-31"
    monkeypatch.setenv("OUT", str(tmp_path))
    assert measure.folder_of(None) == tmp_path
    assert measure.folder_of(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("OUT")
    assert measure.folder_of(None) == measure.ROOT / "bench" / "results"
