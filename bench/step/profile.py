"""Where a training step's time goes: ``python -m bench.step.profile [--size 256] [--out FILE]``.

Profiles the release's networks, or those of --config, with torch.profiler: on a GPU replays of the
CUDA graph by kernels, elsewhere the eager step by operators (self time). Writes Markdown: what
takes the most time, the longest idle gaps, and on a GPU the kernels compared with the floor of
bench/model/roofline.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.model import costs, peaks, roofline
from bench.model.peaks import Ceilings
from bench.report.tables import markdown, number
from bench.step.tasks import random_images
from bench.step.trace import Span, gaps, spans_of
from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import UserError
from fastunit.config import Config
from fastunit.training.cuda_graph import WARM_UP
from fastunit.training.state import TrainState

WIDEST, MOST = 10, 60  # gaps and names shown
LONGEST_NAME = 90  # characters
# Families of kernels: prefixes of fastunit's kernel names, and names in bench/model/costs.py.
FAMILIES = {
    "GEMM, forward and dgrad": (("conv_gemm_kernel",), ("fprop", "dgrad")),
    "GEMM, wgrad": (("wgrad_kernel",), ("wgrad",)),
    "filters' layouts, sums of splits": (("pack_kernel", "split_reduce_kernel"), ()),
    "borders, few channels, scores": (("lines_", "taps_", "shift_add_", "dot_"), ()),
    "norm, activation, halo": (("statistics_", "merge_", "fprop_"), ("norm_act",)),
    "their backward": (("backward_",), ("act backward",)),
    "sampling": (("_reparameterize",), ("reparameterize", "reparameterize backward")),
}
ADAM, REST = "Adam", "all else (losses, copies, casts, cuDNN)"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if min(args.size, args.batch, args.steps) < 1:
        raise UserError("--size, --batch and --steps must be at least 1")
    crop = {"crop_image_height": args.size, "crop_image_width": args.size}
    values = config.read_yaml(args.config) if args.config else {}
    settings = config.resolve(values, args.overrides, crop | {"batch_size": args.batch})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spans, execution = profiled(settings, device, args.steps)
    if not spans:
        raise UserError("the profiler recorded nothing; is access to CUPTI's counters allowed?")
    limits = peaks.measured() if device.type == "cuda" else None
    name = torch.cuda.get_device_name() if limits else "CPU"
    title = f"A training step on {name}: {args.size}x{args.size}, batch {args.batch}"
    text = "\n".join([f"# {title}", "", execution, "", *page(spans, args.steps, settings, limits)])
    if args.out is None:
        print(text)
    else:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.step.profile", description=__doc__)
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML, or a built-in one by name; default: the release's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--size", type=int, default=256, help="pixels; default %(default)s")
    add("--batch", type=int, default=1, help="images of each domain; default %(default)s")
    add("--steps", type=int, default=3, help="number of profiled steps; default %(default)s")
    add("--out", type=Path, metavar="FILE", help="Markdown; default: standard output")
    return parser


def profiled(settings: Config, device: torch.device, steps: int) -> tuple[list[Span], str]:
    """Return the spans of some steps after warm-up, and a description of how they are computed."""
    state = TrainState(settings, device)
    images = random_images(settings, device)
    gpu = device.type == "cuda"
    os.environ.setdefault("TEARDOWN_CUPTI", "0")  # CUDA graphs may crash after its teardown
    for _ in range(WARM_UP + 2 if gpu else 1):  # on a GPU the last are replays
        state.step(*images)
    activities = [ProfilerActivity.CPU]
    if gpu:
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as found:
        for _ in range(steps):
            state.step(*images)
        if gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return spans_of(trace["traceEvents"], gpu), state.execution_summary()


def page(spans: Sequence[Span], steps: int, settings: Config, limits: Ceilings | None) -> list[str]:
    """Return the lines of Markdown; milliseconds and counts are per step."""
    busy = sum(span.busy for span in spans) / steps / 1e3
    whole = (max(span.end for span in spans) - spans[0].start) / steps / 1e3
    idle = gaps(spans)
    total = sum(gap.idle for gap in idle) / steps / 1e3
    lines = [
        f"Per step, mean of {steps}, with the profiler on: {whole:.3f} ms, {busy:.3f} ms in "
        f"{len(spans) / steps:.0f} kernels or operators, {total:.3f} ms idle.",
    ]
    if limits is not None:
        lines += [
            "",
            "## Compared with the floor",
            "",
            *_beside_floor(spans, steps, settings, limits),
        ]
        lines += ["", *roofline.table(costs.step(settings), limits)]
    lines += ["", "## By total time", "", *_by_time(spans, steps)]
    widest = sorted(idle, reverse=True)[:WIDEST]
    rows = [[number(gap.idle), _short(gap.before), _short(gap.after)] for gap in widest]
    return [*lines, "", "## The longest gaps", "", *markdown(["µs", "after", "before"], rows)]


def _by_time(spans: Sequence[Span], steps: int) -> list[str]:
    totals, counts = defaultdict(float), defaultdict(int)
    for span in spans:
        totals[span.name] += span.busy
        counts[span.name] += 1
    busy, passed, rows = sum(totals.values()), 0.0, []
    for name in sorted(totals, key=totals.__getitem__, reverse=True)[:MOST]:
        passed += totals[name]
        shares = (f"{100 * part / busy:.1f}" for part in (totals[name], passed))
        count = f"{counts[name] / steps:g}"
        rows.append([_short(name), count, f"{totals[name] / steps / 1e3:.3f}", *shares])
    return markdown(["name", "count", "ms", "%", "% with those above"], rows)


def _beside_floor(
    spans: Iterable[Span], steps: int, settings: Config, limits: Ceilings
) -> list[str]:
    taken, floors = defaultdict(float), defaultdict(float)
    for span in spans:
        taken[family(span.name)] += span.busy / steps / 1e3
    for kernel in costs.step(settings):
        floors[family_of_work(kernel.name)] += 1e3 * limits.seconds(kernel.issued, kernel.bytes)
    rows = []
    for name in (*FAMILIES, ADAM, REST):
        ratio = f"{taken[name] / floors[name]:.2f}" if floors[name] else "-"
        over = f"{taken[name] - floors[name]:.3f}"
        rows.append([name, f"{taken[name]:.3f}", f"{floors[name]:.3f}", over, ratio])
    return markdown(["kernels", "ms", "floor ms", "over it ms", "/ floor"], rows)


def family(kernel: str) -> str:
    """Return the family of a kernel from its name in a trace."""
    for name, (beginnings, _) in FAMILIES.items():
        if kernel.startswith(beginnings):
            return name
    return ADAM if "adam" in kernel.lower() else REST


def family_of_work(name: str) -> str:
    """Return the family of a kernel of bench/model/costs.py; raises KeyError if it is unknown."""
    found = {known: family for family, (_, names) in FAMILIES.items() for known in names}
    return (found | {"adam": ADAM})[name]


def _short(name: str) -> str:
    name = name.replace("|", "/")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


if __name__ == "__main__":
    sys.exit(cli.guard(main))
