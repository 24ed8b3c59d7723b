"""Compiling a training step's kernels before the first step, all of them in parallel."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

import torch

from fastunit.common import precision, progress, waiting
from fastunit.config import Config
from fastunit.kernels.common import runtime
from fastunit.kernels.common.runtime import Launch
from fastunit.kernels.common.variants import compile_missing, variants
from fastunit.models.layers import moved
from fastunit.models.perceptual import load_perceptual
from fastunit.models.unit import networks
from fastunit.training.step import TrainStep

_logger = logging.getLogger(__name__)


def step_launches(
    config: Config,
    arch: int,
    multiprocessors: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Launch]:
    """Record the launches of one training step as on a GPU, without one.

    Networks of the configuration's sizes are built and run on the CPU, in uninitialised memory:
    what takes time on a GPU is only recorded. The state of PyTorch's random generator is kept.

    Args:
        config: the run's; precision=auto is bf16, and grouped execution is on unless it is off.
        arch: compute capability times ten.
        multiprocessors: of the GPU; None is the usual number.
        dtype: of weights and images.
    """
    wanted = {"auto": "bf16", "tf32": "inherit"}.get(config.precision, config.precision)
    settings = replace(config, precision=wanted, compile="off", graphs="off")
    if settings.pair_domains == "auto":
        settings = replace(settings, pair_domains="on")
    last = torch.channels_last
    recorded = runtime.recorded_launches(arch, multiprocessors)
    tf32 = precision.matmul_settings("tf32" if config.precision == "tf32" else "inherit")
    with torch.random.fork_rng(devices=[]), runtime.default_impl("triton"), tf32:
        perceptual = load_perceptual(config.vgg_model_path) if config.vgg_w > 0 else None
        unit = moved(networks(settings).to(dtype))
        samples = settings.batch_size * settings.accumulate
        x_a, x_b = (
            torch.zeros(samples, channels, *settings.crop, dtype=dtype).to(memory_format=last)
            for channels in (settings.input_dim_a, settings.input_dim_b)
        )
        with recorded as launches:
            TrainStep(unit, settings, perceptual and perceptual.to(dtype))(x_a, x_b)
    return launches


def compile_kernels(config: Config, device: torch.device) -> int:
    """Compile what a step on this GPU will launch and Triton's cache lacks; return the number.

    Otherwise kernels are compiled one after another during the first step. A failure is logged
    and left to that step.
    """
    if runtime.choose_impl("auto", torch.empty(0, device=device)) != "triton":
        return 0
    return _compile(config, runtime.arch(device), runtime.multiprocessors(device))


def _compile(config: Config, arch: int, multiprocessors: int | None) -> int:
    start = time.perf_counter()
    try:
        found = variants(step_launches(config, arch, multiprocessors), arch)
        with (
            waiting.on(lambda: "the compilation of kernels"),
            progress.bar(total=len(found), desc="compiling kernels", leave=False) as bar,
        ):

            def show(done: int, total: int) -> None:
                if not done:
                    bar.reset(total)
                bar.update(done - bar.n)
                waiting.progress()

            count = compile_missing(found, os.cpu_count() or 1, show)
    except Exception as error:  # whatever it is, the step says it better or does without
        _logger.warning("kernels are compiled during the first step: %s", error)
        return 0
    if count:
        seconds = time.perf_counter() - start
        _logger.info("compiled %d of %d kernel variants in %.0f s", count, len(found), seconds)
    return count
