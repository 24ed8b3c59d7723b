"""What a training step launches on a GPU, counted here, and the time that a model makes of it.

``python -m bench.model.step_cost --size 256 --batch 1`` runs the second step of a training with
our launches recorded and PyTorch's computing nothing: grouped execution, bf16 autocast with
float32 weights, fused Adam. docs/performance.md explains the table. Times are modelled: no GPU
is needed, and none was asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.model import alternative, groups, recorded
from bench.model.gpu import GPUS, Gpu, read
from bench.model.kernels import Compiler
from bench.model.recorded import Step
from bench.model.timing import Gemm, library_gemm, microseconds
from bench.model.trace import Event
from fastunit.common import cli
from fastunit.common.environment import commit
from fastunit.common.errors import UserError
from fastunit.config import Config
from fastunit.config.loading import read_yaml, resolve
from fastunit.kernels.common import runtime


@dataclass
class Group:
    """The sums over a group's kernels."""

    name: str
    launches: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    l2_bytes: int = 0
    flops: int = 0
    us: float = 0.0
    variants: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if runtime.INTERPRET:
        raise UserError("TRITON_INTERPRET=1 leaves nothing to record; unset it")
    settings, gpu = _settings(args), read(args.arch, args.constants)
    report = measure(settings, gpu, args.compile == "on")
    report |= {"commit": commit(), "config": args.config or "the release's networks"}
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(lines(report)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.model.step_cost", description=__doc__)
    add = parser.add_argument
    add("--config", metavar="FILE", help="a YAML file, or a built-in one by name; the release's")
    add("--size", type=int, default=256, help="height and width; default %(default)s")
    add("--batch", type=int, default=1, help="images of each domain; default %(default)s")
    add("--arch", type=int, default=90, choices=sorted(GPUS), help="compute capability times ten")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("--compile", choices=("on", "off"), default="on", help="whether losses are fused")
    add("--constants", metavar="FILE", help="a JSON file of measured constants: bench/model/gpu.py")
    add("--json", action="store_true", help="everything, with every kind of kernel")
    return parser


def _settings(args: argparse.Namespace) -> Config:
    sizes = [f"batch_size={args.batch}", f"new_size={args.size}"]
    sizes += [f"crop_image_{side}={args.size}" for side in ("height", "width")]
    values = {} if args.config is None else read_yaml(args.config)
    return resolve(values, [*sizes, *args.overrides], {})


def measure(settings: Config, gpu: Gpu, compile: bool = True) -> dict:
    """Return the whole report: both implementations' groups and totals, and all our kernels."""
    eager = recorded.record(settings, gpu)
    ours = recorded.compiled(eager) if compile else eager
    compiler = Compiler(gpu)
    compiler.prepare(ours.events)
    found = summary(ours, compiler)
    return {
        "size": list(settings.crop),
        "batch": settings.batch_size,
        "gpu": dataclasses.asdict(gpu),
        "compile": compile,
        **total(found),
        "launches_without_compile": len(eager.events),
        "variants": ours.variants,
        "host_waits": ours.waits,
        "groups": [dataclasses.asdict(group) for group in found],
        "kernels": kernels(ours, compiler),
        "aten": calls(ours, compiler),
        "strongest": strongest(settings, compiler),
    }


def strongest(settings: Config, compiler: Compiler) -> dict | None:
    """Return the strongest alternative's groups and totals, None where it has no such networks."""
    try:
        found = summary(alternative.record(settings, compiler.gpu), compiler)
    except ValueError:
        return None
    return total(found) | {"groups": [dataclasses.asdict(group) for group in found]}


def summary(step: Step, compiler: Compiler) -> list[Group]:
    """Return the groups in the table's order; those it does not know at the end."""
    order = dict.fromkeys((*groups.ORDER, *step.names))
    found = {name: Group(name) for name in order}
    variants: dict[str, set] = {name: set() for name in order}
    for event, name in zip(step.events, step.names, strict=True):
        cost, group = compiler.cost(event), found[name]
        group.launches += 1
        group.bytes_in += cost.bytes_in
        group.bytes_out += cost.bytes_out
        group.l2_bytes += cost.l2_bytes
        group.flops += cost.flops
        group.us += time_of(event, compiler)
        if event.variant is not None:
            variants[name].add(event.variant.key)
    for name, group in found.items():
        group.variants = len(variants[name])
    return [group for group in found.values() if group.launches]


def time_of(event: Event, compiler: Compiler) -> float:
    """Return a kernel's modelled microseconds."""
    cost, work = compiler.cost(event), event.work
    if work.gemm is not None and event.variant is None:
        return library_gemm(Gemm(*work.gemm), compiler.gpu, cost.bytes_in, cost.bytes_out)
    return microseconds(cost, compiler.gpu)


def total(found: Iterable[Group]) -> dict[str, float]:
    """Return the sums over groups: launches, GB, L2 GB, TFLOP and milliseconds."""
    found = list(found)
    return {
        "launches": sum(group.launches for group in found),
        "gb": sum(group.bytes_in + group.bytes_out for group in found) / 1e9,
        "l2_gb": sum(group.l2_bytes for group in found) / 1e9,
        "tflop": sum(group.flops for group in found) / 1e12,
        "ms": sum(group.us for group in found) / 1e3,
    }


def kernels(step: Step, compiler: Compiler) -> list[dict]:
    """Return each kind of kernel of ours, most of the time first: counts of one, and `times`."""
    found: dict[tuple, dict] = {}
    for event in step.events:
        if event.variant is None:
            continue
        cost = compiler.cost(event)
        row = found.setdefault(
            (event.variant.key, event.grid, cost),
            {"name": event.work.name, "tile": _tile(event), "times": 0,
             "us": time_of(event, compiler), **dataclasses.asdict(cost)},
        )  # fmt: skip
        slots = cost.resident * compiler.gpu.multiprocessors
        row["waves"], row["times"] = cost.programs / slots, row["times"] + 1
    return sorted(found.values(), key=lambda row: -row["us"] * row["times"])


def calls(step: Step, compiler: Compiler) -> list[dict]:
    """Return each kind of ATen kernel and place, most of the time first: sums over `times`."""
    found: dict[tuple[str, str, str], dict] = {}
    for event, group in zip(step.events, step.names, strict=True):
        if event.variant is not None:
            continue
        key = group, event.work.name, event.place
        new = {"group": group, "name": key[1], "place": key[2], "times": 0, "bytes": 0, "us": 0.0}
        row, cost = found.setdefault(key, new), compiler.cost(event)
        row["times"] += 1
        row["bytes"] += cost.bytes_in + cost.bytes_out
        row["us"] += time_of(event, compiler)
    return sorted(found.values(), key=lambda row: -row["us"])


def _tile(event: Event) -> str:
    assert event.variant is not None
    blocks = [v for n, v in event.variant.constants.items() if n.startswith("BLOCK")]
    return "x".join(map(str, blocks))


def lines(report: dict) -> list[str]:
    """Return the report as Markdown."""
    other, (height, width) = report["strongest"], report["size"]
    rows = [["group", "launches", "variants", "GB in", "GB out", "L2 GB", "GFLOP", "ms"]]
    rows.append(["---", *["--:"] * 7])
    rows += [_cells(group) for group in report["groups"]]
    rows.append(_sum("**step**", report))
    rows += [_sum("strongest alternative (estimate)", other)] if other else []
    ratio = f"{other['ms'] / report['ms']:.2f}" if other else "not known for these networks"
    return [
        f"Modelled, not measured: {report['config']}, {height}x{width}, batch {report['batch']}, "
        f"bf16, {report['gpu']['name']}, commit {report['commit'] or 'unknown'}.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in rows),
        "",
        f"- strongest / fastunit: {ratio}",
        f"- launches without torch.compile: {report['launches_without_compile']}",
        f"- calls that make the host wait: {sum(report['host_waits'].values())}",
    ]


def _cells(group: dict) -> list[str]:
    numbers = [group[key] / 1e9 for key in ("bytes_in", "bytes_out", "l2_bytes")]
    return [group["name"], str(group["launches"]), str(group["variants"] or "-"),
        *(f"{n:.2f}" for n in numbers), f"{group['flops'] / 1e9:.0f}",
        f"{group['us'] / 1e3:.2f}"]  # fmt: skip


def _sum(name: str, report: dict) -> list[str]:
    moved = [sum(g[key] for g in report["groups"]) / 1e9 for key in ("bytes_in", "bytes_out")]
    return [name, str(report["launches"]), str(report.get("variants", "-")),
        *(f"{n:.2f}" for n in (*moved, report["l2_gb"])), f"{report['tflop'] * 1e3:.0f}",
        f"{report['ms']:.2f}"]  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.guard(main))
