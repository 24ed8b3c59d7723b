"""bench/step/profile.py: what is read from a trace, gaps, shares and the floor's families."""

from __future__ import annotations

import re

import pytest
import torch

from bench.gpu import every_kernel
from bench.model import costs
from bench.model.peaks import Ceilings
from bench.step import profile
from bench.step.trace import Gap, Span, gaps, spans_of
from fastunit import config
from fastunit.common import cli
from tests.support.benchmarks import cells

SETTINGS = config.from_dict({"crop_image_height": 64, "crop_image_width": 64})


def event(name, ts, dur, cat="kernel", tid=7, ph="X"):
    return {"name": name, "ts": ts, "dur": dur, "cat": cat, "tid": tid, "ph": ph}


KERNELS = [
    event("wgrad_kernel", 40.0, 10.0),
    event("cudaGraphLaunch", 0.0, 100.0, cat="cuda_runtime"),
    event("conv_gemm_kernel", 0.0, 30.0),
    event("Memcpy DtoD (Device -> Device)", 12.0, 5.0, cat="gpu_memcpy", tid=8),  # beside it
    event("conv_gemm_kernel", 50.0, 10.0),
    event("multi_tensor_apply_kernel<FusedAdam>", 65.0, 5.0),
    {"name": "conv_gemm_kernel", "cat": "kernel", "ph": "f", "ts": 3.0},
]


def below(page, title):
    """Return the rows of the first table below a heading, without its two header lines."""
    table = page.partition(f"## {title}\n\n")[2].partition("\n\n")[0]
    return cells(table.splitlines())[2:]


def test_kernels_of_a_trace_are_found_in_order():
    found = spans_of(KERNELS, gpu=True)
    assert [span.start for span in found] == [0, 12, 40, 50, 65]
    assert found[1] == Span("Memcpy DtoD (Device -> Device)", 12, 17, 5)


def test_operators_count_without_those_that_they_call():
    def op(name, ts, dur, tid=1):
        return event(name, ts, dur, "cpu_op", tid)

    nested = [op("conv2d", 0, 50), op("convolution", 5, 40), op("mkldnn", 10, 30)]
    nested.append(op("copy", 41, 3))
    found = spans_of(
        [
            *nested,
            op("relu", 60, 5),
            op("backward", 0, 70, tid=2),
            event("step", 0, 90, "user_annotation", 1),
        ],
        gpu=False,
    )
    own = {span.name: span.busy for span in found}
    wanted = {"conv2d": 10, "convolution": 7, "mkldnn": 30, "copy": 3, "relu": 5, "backward": 70}
    assert own == wanted
    assert [span.start for span in found] == sorted(span.start for span in found)


def test_gaps_are_those_in_which_nothing_runs():
    spans = spans_of(KERNELS, gpu=True)
    assert gaps(spans) == [
        Gap(10, "conv_gemm_kernel", "wgrad_kernel"),
        Gap(5, "conv_gemm_kernel", "multi_tensor_apply_kernel<FusedAdam>"),
    ]
    assert gaps([Span("a", 0, 9, 9), Span("b", 2, 5, 3), Span("c", 8, 12, 4)]) == []


def test_times_and_shares_are_those_of_a_step():
    spans = spans_of(KERNELS, gpu=True)
    page = "\n".join(profile.page(spans, 2, SETTINGS, None))
    # 60 us in 5 kernels of two steps that took 70 us, 15 of them idle.
    assert page.startswith(
        "Per step, mean of 2, with the profiler on: 0.035 ms, 0.030 ms in 2 kernels or operators, "
        "0.007 ms idle."
    )
    first, second = below(page, "By total time")[:2]
    assert first == ["conv_gemm_kernel", "1", "0.020", "66.7", "66.7"]
    assert second == ["wgrad_kernel", "0.5", "0.005", "16.7", "83.3"]
    assert below(page, "The longest gaps")[0] == ["10.0", "conv_gemm_kernel", "wgrad_kernel"]
    assert "floor" not in page


def test_kernels_stand_beside_their_floor():
    spans, limits = spans_of(KERNELS, gpu=True), Ceilings(800, 3000)
    page = "\n".join(profile.page(spans, 2, SETTINGS, limits))
    rows = {row[0]: [float(x) for x in row[1:4]] for row in below(page, "Compared with the floor")}
    wanted = 1e3 * sum(
        limits.seconds(kernel.issued, kernel.bytes)
        for kernel in costs.step(SETTINGS)
        if kernel.name in ("fprop", "dgrad")
    )
    products = rows["GEMM, forward and dgrad"]
    assert products == pytest.approx([0.020, wanted, 0.020 - wanted], abs=1e-3)
    assert rows["Adam"][0] == pytest.approx(0.0025, abs=1e-3)
    floor = sum(row[1] for row in rows.values())
    assert floor == pytest.approx(
        1e3 * sum(limits.seconds(k.issued, k.bytes) for k in costs.step(SETTINGS)), abs=4e-3
    )


def test_every_kernel_of_ours_has_a_family():
    names = {every_kernel.name(launch) for launch in every_kernel.launches()}
    families = {profile.family(name) for name in names}
    assert families == set(profile.FAMILIES)
    assert profile.family("fprop_kernel") != profile.family("_reparameterize_fprop_kernel")
    assert profile.family("void cudnn::conv(float)") == profile.REST
    for kernel in costs.step(SETTINGS):
        assert profile.family_of_work(kernel.name) != profile.REST


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU there are kernels instead")
def test_a_step_on_a_cpu_is_profiled_by_its_operators(config_file, tmp_path):
    path = tmp_path / "profile.md"
    options = ["--config", config_file, "--size", 16, "--batch", 2, "--steps", 2, "--out", path]
    assert profile.main(list(map(str, options))) == 0
    page = path.read_text()
    assert page.startswith("# A training step on CPU: 16x16, batch 2\n")
    names = {row[0]: row for row in below(page, "By total time")}
    products = [name for name in names if "convolution" in name]
    assert products and all(float(names[name][1]) > 1 for name in products)
    rows = below(page, "By total time")
    rounding = 0.05 * (len(rows) + 1)
    assert float(rows[-1][-1]) == pytest.approx(sum(float(row[3]) for row in rows), abs=rounding)
    assert float(rows[-1][-1]) > 90
    found = re.search(r"([\d.]+) ms, ([\d.]+) ms in \d+ kernels or operators, ([\d.]+)", page)
    whole, busy, idle = map(float, found.groups())
    assert 0 < busy < whole and 0 < idle < whole


def test_nonsense_is_refused(capsys):
    assert cli.guard(lambda: profile.main(["--batch", "0"])) == 2
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.gpu
def test_replays_are_profiled_kernel_by_kernel(tiny):
    settings = config.from_dict(tiny | {"graphs": "on"})
    spans, manner = profile.profiled(settings, torch.device("cuda"), 2)
    found = {profile.family(span.name) for span in spans}
    assert found >= {*profile.FAMILIES, profile.ADAM} and "CUDA graph on" in manner
    wgrads = sum(span.name.startswith("wgrad_kernel") for span in spans)
    assert wgrads > 0 and wgrads % 2 == 0
