"""Does sharing layers help? ``python bench/sharing.py DATA [--out runs/sharing] [--seeds 3]``.

Trains configs/emoji.yaml with none, one and both of the residual blocks shared in the encoders and
the decoders, and once with learned variance, on every seed, each run in a process with one thread.
Writes OUT/sharing.md, the held-out paired error of each with its spread over seeds, and
OUT/sharing.png, the same held-out pictures translated by each, and OUT/interpolation.png. "Partner
nearest" is the share of held-out pictures whose true partner has the nearest code of all. Called
again, it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from fastunit import checkpoint, cli, config, files
from fastunit.coupled import DIRECTIONS
from fastunit.errors import UserError

with cli.needs("train"):
    from tqdm import tqdm

    from fastunit import paired, report, sources, summary

VARIANTS = [(0, "unit"), (1, "unit"), (2, "unit"), (1, "learned")]  # shared blocks, latent
TRIVIAL = {kind: label for kind, label in summary.KINDS.items() if kind != "paired"}
SHOWN = 12  # pictures
ENDS = [2, 6]  # of the held-out pictures, between which codes are interpolated


class Run(NamedTuple):
    """A training run: shared blocks in encoders and in decoders, kind of latent, seed."""

    shared: int
    latent: str
    seed: int

    @property
    def variant(self) -> str:
        return f"share {self.shared}/{self.shared}, {self.latent}"

    def folder(self, out: Path) -> Path:
        return out / f"share{self.shared}-{self.latent}-seed{self.seed}"

    def settings(self, args: argparse.Namespace) -> config.Config:
        """Return the configuration it is trained with."""
        keys = {
            "share.enc": self.shared,
            "share.dec": self.shared,
            "latent": self.latent,
            "seed": self.seed,
            "max_iter": args.iterations,
            "data_root": args.data,
        }
        return config.load(args.config, [f"{key}={value}" for key, value in keys.items()])

    def command(self, args: argparse.Namespace) -> list[str]:
        """Return the command line that trains it, or goes on with it where it was stopped."""
        folder = self.folder(args.out)
        how = [f"--resume={folder}"] if checkpoint.iterations(folder) else self._anew(args)
        return [sys.executable, "-m", "fastunit.train", *how, "--device=cpu"]

    def _anew(self, args: argparse.Namespace) -> list[str]:
        folder = self.folder(args.out)
        files.write_text(config.dump_yaml(self.settings(args)), folder.with_suffix(".yaml"))
        return [f"--config={folder}.yaml", f"--output={folder}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0: done, 2: a UserError."""
    parser = argparse.ArgumentParser(prog="python bench/sharing.py", description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with trainA, trainB, testA and testB")
    parser.add_argument("--out", type=Path, default=Path("runs/sharing"))
    parser.add_argument("--config", default="emoji", help="as --config of fastunit.train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    args = parser.parse_args(argv)
    return cli.guard(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    # Seeds come last, so that what is there after some of the runs compares all variants.
    runs = [Run(*variant, seed) for seed, variant in product(range(args.seeds), VARIANTS)]
    settings = runs[0].settings(args)
    domains = sources.find_domains(settings)
    if not paired.find_pairs(domains, settings):
        raise UserError(f"{args.data} has no pairs in testA and testB, told by equal names")
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(runs), unit="run") as bar:
        trainings = [pool.submit(_train, run, args) for run in runs]
        try:
            for training in as_completed(trainings):
                training.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    lines = table({run: _result(run, args) | _latent(run, args) for run in runs})
    files.write_text("\n".join(lines) + "\n", args.out / "sharing.md")
    report.draw_grid(_pictures(runs, args), args.out / "sharing.png")
    report.draw_grid(_interpolations(runs, args), args.out / "interpolation.png")
    print("\n".join(lines))
    return 0


def _train(run: Run, args: argparse.Namespace) -> None:
    folder = run.folder(args.out)
    settings = folder / "config.yaml"
    if settings.is_file() and config.load(settings) != run.settings(args):
        raise UserError(f"{folder} holds a run of other settings; choose another --out")
    if (folder / "result.json").is_file():
        return
    if folder.exists() and not checkpoint.iterations(folder):
        shutil.rmtree(folder)  # stopped before there was anything to go on from
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(run.command(args), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{folder} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _result(run: Run, args: argparse.Namespace) -> dict:
    return json.loads((run.folder(args.out) / "result.json").read_text(encoding="utf-8"))


def table(results: dict[Run, dict]) -> list[str]:
    """Return the Markdown table: mean and standard deviation over seeds of the paired errors."""
    lines = ["| variant | seeds | a to b | b to a | both | of each seed | partner nearest |"]
    lines += ["| --- | --: | --: | --: | --: | --- | --: |"]
    for variant in dict.fromkeys(run.variant for run in results):
        found = [result for run, result in results.items() if run.variant == variant]
        ways = [[result[way]["paired_l1"] for result in found] for way in DIRECTIONS]
        both = [statistics.mean(errors) for errors in zip(*ways, strict=True)]
        cells = [_spread(errors) for errors in (*ways, both)]
        cells.append(", ".join(f"{error:.3f}" for error in both))
        cells.append(_spread([result["partner_nearest"] for result in found]))
        lines.append(f"| {variant} | {len(found)} | {' | '.join(cells)} |")
    one = next(iter(results.values()))
    for kind, label in TRIVIAL.items():
        if not all(f"{kind}_l1" in one[way] for way in DIRECTIONS):
            continue  # pictures of different sizes, or a run of an earlier version
        errors = [one[way][f"{kind}_l1"] for way in DIRECTIONS]
        cells = [f"{error:.3f}" for error in (*errors, statistics.mean(errors))]
        lines.append(f"| {label} | - | {' | '.join(cells)} | - | - |")
    return lines


def _spread(errors: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(errors):.3f}" if len(errors) > 1 else ""
    return f"{statistics.mean(errors):.3f}{spread}"


@torch.no_grad()
def _pictures(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return rows of pictures: inputs, what each variant's first seed makes of them, the truth."""
    x_a, x_b = _held_out(runs[0], args, SHOWN)
    rows = {"a": x_a}
    for run in runs:
        if run.seed == 0:
            pair, _ = checkpoint.load_generators(run.folder(args.out))
            rows[f"a to b, {run.variant}"] = pair.translate(x_a, "a2b")
    rows["b, the truth"] = x_b
    return {label: report.to_pixels(images).numpy() for label, images in rows.items()}


@torch.no_grad()
def _interpolations(runs: Sequence[Run], args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Return rows that go from one held-out code of a to another, as both domains' pictures."""
    x_a, _ = _held_out(runs[0], args, SHOWN)
    share, rows = torch.linspace(0, 1, SHOWN)[:, None, None, None], {}
    for run in runs:
        if run.seed == 0:
            pair, _ = checkpoint.load_generators(run.folder(args.out))
            first, last = pair.gen_a.code(x_a[ENDS])
            z = torch.lerp(first, last, share)
            for name, generator in (("a", pair.gen_a), ("b", pair.gen_b)):
                rows[f"as {name}, {run.variant}"] = generator.decode(z)
    return {label: report.to_pixels(images).numpy() for label, images in rows.items()}


@torch.no_grad()
def _latent(run: Run, args: argparse.Namespace) -> dict[str, float]:
    """Return how well a run's codes of held-out pairs meet."""
    pair, _ = checkpoint.load_generators(run.folder(args.out))
    x_a, x_b = _held_out(run, args, 10_000)
    return {"partner_nearest": nearest(pair.gen_a.code(x_a), pair.gen_b.code(x_b))}


def nearest(z_a: torch.Tensor, z_b: torch.Tensor) -> float:
    """Return the share of codes [N, ...] of a whose nearest code of b is that of its partner."""
    found = torch.cdist(z_a.flatten(1), z_b.flatten(1)).argmin(1)
    return (found == torch.arange(len(found))).double().mean().item()


def _held_out(run: Run, args: argparse.Namespace, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first held-out pairs, at most so many."""
    settings = replace(run.settings(args), display_size=count)
    return paired.shown_images(sources.find_domains(settings), settings, torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
