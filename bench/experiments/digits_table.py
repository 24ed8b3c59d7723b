"""The table of docs/digits.md: ``python -m bench.experiments.digits_table DATA [--out DIR]``.

Trains both directions between MNIST and USPS under each protocol, with each method and every seed,
on one thread, with the command `fastunit.adapt`. All cells are trained with one seed before the
next seed, so that a partial table compares all cells. After each run it writes OUT/digits.md (the
last iterate's accuracy on the target's test split) and OUT/digits-curves.png. When called again, it
keeps runs that have a result and resumes one that was stopped. `--table` only writes the files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from fastunit import adapt, config
from fastunit.common import cli, files
from fastunit.common.errors import UserError
from fastunit.common.progress import STDERR
from fastunit.digits.objective import settings_from

with cli.needs("train"):
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from fastunit.report.metrics import read_metrics

# Sizes for one core and two hours; all other settings are those of configs/digits.yaml.
SHORT = (
    *("gen_ch=8", "dis_ch=8", "batch_size=16"),
    *("iterations=1400", "warmup=1000", "test_every=350"),
)
_STILL = ("rotation=0", "stretch=0", "shear=0", "shift=0")
PROTOCOLS = {
    "stretched": ("geometry=frame", *_STILL),
    "padded": ("geometry=pad", *_STILL),
    "box, deformed": ("geometry=box",),
}
SELF_LABELLED = "adapted, self-labelled"
METHODS = {
    "source only": ("--source-only",),
    "adapted": (),
    SELF_LABELLED: ("--set", "self_label_w=5"),
}
PAIRS = (("mnist", "usps"), ("usps", "mnist"))
TITLES = {"mnist": "MNIST", "usps": "USPS"}


class Run(NamedTuple):
    """A training run: a cell of the table with one seed."""

    protocol: str
    method: str
    source: str
    target: str
    seed: int

    def folder(self, out: Path) -> Path:
        words = f"{self.protocol} {self.method} {self.source} {self.target} {self.seed}"
        return out / "-".join(words.replace(",", "").split())

    def options(self, args: argparse.Namespace) -> list[str]:
        """Return the options of `python -m fastunit.adapt` that train it."""
        sets = (*SHORT, *PROTOCOLS[self.protocol], *args.overrides)
        options = ["--source", self.source, "--target", self.target, "--seed", str(self.seed)]
        options += ["--data", str(args.data), "--output", str(self.folder(args.out))]
        options += [
            "--resume",
            "--device",
            "cpu",
            *(word for key in sets for word in ("--set", key)),
        ]
        return [*options, *METHODS[self.method]]

    def result(self, args: argparse.Namespace) -> dict | None:
        """Return its result.json; None if it has not finished."""
        folder = self.folder(args.out)
        kept, path = folder / "config.yaml", folder / "result.json"
        settings = adapt.settings_of(adapt.parser().parse_args(self.options(args)))
        if kept.is_file() and settings_from(config.read_yaml(kept)) != settings:
            raise UserError(f"{folder} holds a run of other settings; choose another --out")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0: done, 2: a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.digits_table", description=__doc__
    )
    parser.add_argument("data", type=Path, help="folder with the files of MNIST and USPS")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
        help="for every run, for instance iterations=4200; may be repeated",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="write the files without training")
    args = parser.parse_args(argv)
    return cli.guard(lambda: _fill(args))


def _fill(args: argparse.Namespace) -> int:
    cells = product(range(args.seeds), args.methods, args.protocols, PAIRS)
    runs = [Run(protocol, method, *pair, seed) for seed, method, protocol, pair in cells]
    results = {run: run.result(args) for run in runs}
    missing = [] if args.table else [run for run in runs if results[run] is None]
    torch.set_num_threads(1)
    for run in tqdm(missing, unit="run", file=STDERR):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = adapt.main(run.options(args))
        if code:  # adapt has printed the reason
            print(said.getvalue(), end="")
            return code
        results[run] = run.result(args)
        _write(results, args)
    if not any(results.values()):
        raise UserError(f"{args.out} has no results yet; leave --table out to train")
    print(_write(results, args), end="")
    return 0


def _write(results: dict[Run, dict | None], args: argparse.Namespace) -> str:
    ended = {run: result for run, result in results.items() if result is not None}
    text = "\n".join(table(ended)) + "\n"
    files.write_text(text, args.out / "digits.md")
    _draw_curves(ended, args)
    return text


def table(results: dict[Run, dict]) -> list[str]:
    """Return the Markdown table: mean ± standard deviation over seeds, and each seed's accuracy."""
    titles = [f"{TITLES[source]} to {TITLES[target]}" for source, target in PAIRS]
    lines = [f"| protocol | method | {' | '.join(titles)} |", "| --- | --- | --- | --- |"]
    for protocol, method in dict.fromkeys((run.protocol, run.method) for run in results):
        cells = []
        for pair in PAIRS:
            found = [
                result["target_accuracy"]
                for run, result in results.items()
                if run[:-1] == (protocol, method, *pair)
            ]
            cells.append(_spread(found))
        lines.append(f"| {protocol} | {method} | {' | '.join(cells)} |")
    return lines


def _spread(shares: Sequence[float]) -> str:
    if not shares:
        return "not run"
    spread = f" ± {statistics.stdev(shares):.4f}" if len(shares) > 1 else ""
    return f"{statistics.mean(shares):.4f}{spread} ({', '.join(f'{x:.4f}' for x in shares)})"


def _draw_curves(results: dict[Run, dict], args: argparse.Namespace) -> None:
    """Write a PNG with a plot for each direction and protocol, and a line for each run."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(len(PAIRS), len(args.protocols), sharex=True, squeeze=False)
    colours = dict(zip(METHODS, ("0.55", "tab:blue", "tab:orange"), strict=True))
    for run, result in results.items():
        axes = grid[PAIRS.index((run.source, run.target))][args.protocols.index(run.protocol)]
        records = [r for r in read_metrics(run.folder(args.out)) if "target_accuracy" in r]
        steps, shares = ([r[key] for r in records] for key in ("iteration", "target_accuracy"))
        axes.plot(steps, shares, marker=".", color=colours[run.method], label=run.method)
        axes.set_title(f"{TITLES[run.source]} to {TITLES[run.target]}, {run.protocol}", size=9)
        axes.axvline(result["settings"]["warmup"], color="0.85", zorder=0)
        axes.grid(alpha=0.3)
    labelled = dict(zip(*reversed(grid[0][0].get_legend_handles_labels()), strict=True))
    grid[0][0].legend(labelled.values(), labelled, fontsize=8, loc="lower right")
    figure.supxlabel("iteration", size=9)
    figure.supylabel("accuracy on the target's test split", size=9)
    with files.atomic(args.out / "digits-curves.png") as temporary:
        figure.savefig(temporary, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
