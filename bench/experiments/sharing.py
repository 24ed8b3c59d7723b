"""The paper's ablation on drawn scenes and their maps: ``python -m bench.experiments.sharing``.

Trains configs/maps.yaml in all combinations of: none, one or both residual blocks shared in
encoders and decoders; with and without the cycle; domain b's generator initialized on its own or as
a copy of a's. Each is trained with every seed, in a process with one thread. Evaluates the maps of
held-out scenes, and writes OUT/sharing.md and OUT/sharing.png (the maps of each variant's first
seed). When called again, it continues; ``--report`` evaluates the seeds that are complete.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from fastunit import config
from fastunit.common import cli, files
from fastunit.common.errors import UserError
from fastunit.training import checkpoint

with cli.needs("train"):
    from tqdm import tqdm

    from fastunit.data import builtin, discovery
    from fastunit.report import grid
    from fastunit.training import held_out

LEVELS = 16  # a pixel is right if each channel is within this many of 255 levels of the truth
SHOWN = 12  # images
# Student's t for 95 % intervals, by the number of seeds.
T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


class Variant(NamedTuple):
    """A variant: blocks shared in encoders and in decoders, cycle, initial weights of b."""

    shared: int
    cycle: bool
    init_b: str

    def __str__(self) -> str:
        return f"{self.shared} shared, cycle {'on' if self.cycle else 'off'}, {self.init_b}"


VARIANTS = [Variant(*levels) for levels in product((0, 1, 2), (True, False), ("own", "copy"))]


class Run(NamedTuple):
    """A training run."""

    variant: Variant
    seed: int

    def folder(self, out: Path) -> Path:
        return out / f"{str(self.variant).replace(', ', '-').replace(' ', '')}-seed{self.seed}"

    def done(self, out: Path) -> bool:
        return (self.folder(out) / "result.json").is_file()

    def settings(self, args: argparse.Namespace) -> config.Config:
        """Return its configuration."""
        shared, cycle, init_b = self.variant
        keys = {"share.enc": shared, "share.dec": shared, "init_b": init_b, "seed": self.seed}
        if not cycle:
            keys |= {"recon_x_cyc_w": 0, "recon_kl_cyc_w": 0}
        if args.iterations is not None:
            keys["max_iter"] = args.iterations
        return config.load("maps", [f"{key}={value}" for key, value in keys.items()])

    def command(self, args: argparse.Namespace) -> list[str]:
        """Return the command line that trains it, or resumes it if it was stopped."""
        folder = self.folder(args.out)
        how = [f"--resume={folder}"] if checkpoint.iterations(folder) else self._anew(args)
        return [sys.executable, "-m", "fastunit.train", *how, "--device=cpu"]

    def _anew(self, args: argparse.Namespace) -> list[str]:
        folder = self.folder(args.out)
        files.write_text(config.dump_yaml(self.settings(args)), Path(f"{folder}.yaml"))
        return [f"--config={folder}.yaml", f"--output={folder}"]


class Score(NamedTuple):
    """On held-out pairs: share of right pixels of the maps; mean absolute errors."""

    right: float
    a2b: float
    b2a: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0: done, 2: a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.sharing", description=__doc__
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/sharing"))
    add("--seeds", type=int, default=5, choices=range(1, 11), metavar="1..10")
    add("--iterations", type=int, help="of each run (default: max_iter of configs/maps.yaml)")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    add("--report", action="store_true", help="train nothing; report the seeds that are complete")
    args = parser.parse_args(argv)
    return cli.guard(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> int:
    seeds = range(args.seeds)
    if args.report:
        seeds = [s for s in seeds if all(Run(variant, s).done(args.out) for variant in VARIANTS)]
        if not seeds:
            raise UserError(f"{args.out} has no seed of which all {len(VARIANTS)} runs are done")
    # All variants with one seed before the next seed: a partial result compares all variants.
    runs = [Run(variant, seed) for seed in seeds for variant in VARIANTS]
    builtin.demo_root(builtin="scene_maps")  # drawn once, not by every process
    if not args.report:
        _train_all(runs, args)
    _write(runs, args)
    return 0


def _train_all(runs: Sequence[Run], args: argparse.Namespace) -> None:
    failed = threading.Event()

    def train(run: Run) -> None:
        """Train a run unless one has failed; a thread may start before futures are canceled."""
        try:
            if not failed.is_set():
                _train(run, args)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(runs), unit="run") as bar:
        trainings = [pool.submit(train, run) for run in runs]
        try:
            for training in as_completed(trainings):
                training.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def _train(run: Run, args: argparse.Namespace) -> None:
    folder = run.folder(args.out)
    settings = folder / "config.yaml"
    if settings.is_file() and config.load(settings) != run.settings(args):
        raise UserError(f"{folder} holds a run of other settings; choose another --out")
    if run.done(args.out):
        return
    if folder.exists() and not checkpoint.iterations(folder):
        shutil.rmtree(folder)  # stopped before its first checkpoint
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(run.command(args), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{folder} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


@torch.no_grad()
def _write(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Evaluate the runs and write the tables and the image."""
    (x_a, x_b), training = (_images(runs[0].settings(args), test=t) for t in (True, False))
    scores, rows = {}, {"scene": x_a[:SHOWN]}
    for run in runs:
        pair, _ = checkpoint.load_generators(run.folder(args.out))
        maps, scenes = pair.translate(x_a, "a2b"), pair.translate(x_b, "b2a")
        scores[run] = Score(right(maps, x_b), _l1(maps, x_b), _l1(scenes, x_a))
        if run.seed == runs[0].seed:
            rows[str(run.variant)] = maps[:SHOWN]
    rows["the true map"] = x_b[:SHOWN]
    guesses = {"one constant image": constant, "one colour": colour}
    guesses = {name: [guess(x) for x in training] for name, guess in guesses.items()}
    baselines = {
        name: Score(right(for_b, x_b), _l1(for_b, x_b), _l1(for_a, x_a))
        for name, (for_a, for_b) in (guesses | {"left unchanged": (x_b, x_a)}).items()
    }
    lines = [*table(scores, baselines), "", *differences(scores)]
    files.write_text("\n".join(lines) + "\n", args.out / "sharing.md")
    files.write_json(
        {run.folder(Path()).name: score._asdict() for run, score in scores.items()},
        args.out / "sharing.json",
    )
    grid.save_grid(rows, args.out / "sharing.png")
    print("\n".join(lines))


def _images(settings: config.Config, *, test: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the centre crops of all held-out pairs, or of all training images."""
    root = builtin.demo_root(builtin=settings.data.builtin)
    settings = replace(settings, data_root=str(root), display_size=10_000)
    domains = discovery.find_domains(settings)
    if not test:
        domains = replace(domains, test_a=(), test_b=())
    return held_out.shown_images(domains, settings, torch.device("cpu"))


def right(images: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of pixels whose channels are all within `LEVELS` of the truth.

    Both are [N, C, H, W], or broadcast to it, in [-1, 1]; compared as 8-bit values.
    """
    levels = [((x.double().clamp(-1, 1) + 1) * 127.5).round() for x in (images, truth)]
    return ((levels[0] - levels[1]).abs() <= LEVELS).all(1).double().mean().item()


def constant(images: torch.Tensor) -> torch.Tensor:
    """Return the better constant prediction of images [N, C, H, W]: their median or their mean."""
    guesses = (images.median(0, keepdim=True).values, images.mean(0, keepdim=True))
    return max(guesses, key=lambda guess: right(guess, images))


def colour(images: torch.Tensor) -> torch.Tensor:
    """Return the most frequent colour of images [N, C, H, W], as [1, C, 1, 1]."""
    colours, counts = images.movedim(1, -1).flatten(0, -2).unique(dim=0, return_counts=True)
    return colours[counts.argmax()][None, :, None, None]


def _l1(images: torch.Tensor, truth: torch.Tensor) -> float:
    return (images.double() - truth.double()).abs().mean().item()


# ---- tables


def table(scores: dict[Run, Score], baselines: dict[str, Score]) -> list[str]:
    """Return the Markdown table of scores: mean and standard deviation over seeds."""
    names = ("shared", "cycle", "start of b", "right pixels", "of each seed", "a to b", "b to a")
    lines = [f"| {' | '.join(names)} |", "| --: | --- | --- | --: | --- | --: | --: |"]
    for variant in dict.fromkeys(run.variant for run in scores):
        shares, *errors = zip(
            *(score for run, score in scores.items() if run.variant == variant), strict=True
        )
        cells = [str(variant.shared), "on" if variant.cycle else "off", variant.init_b]
        cells += [_spread(shares), ", ".join(f"{share:.3f}" for share in shares)]
        lines.append(f"| {' | '.join([*cells, *map(_spread, errors)])} |")
    for name, score in baselines.items():
        cells = [f"{value:.3f}" for value in score]
        lines.append(f"| {name} | - | - | {cells[0]} | - | {cells[1]} | {cells[2]} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def differences(scores: dict[Run, Score]) -> list[str]:
    """Return the Markdown table of differences in right pixels, with their 95 % intervals.

    A difference is taken within each seed, between the means over the variants of either side; the
    interval is Student's t over seeds.
    """
    lines = ["| difference in right pixels | mean | 95 % interval | excludes 0 |"]
    lines += ["| --- | --: | --: | --- |"]
    seeds = list(dict.fromkeys(run.seed for run in scores))
    for label, (more, less) in _contrasts().items():
        found = [_mean(scores, more, seed) - _mean(scores, less, seed) for seed in seeds]
        mean, interval, told = statistics.mean(found), "-", "-"
        if len(found) > 1:
            half = T[len(found)] * statistics.stdev(found) / math.sqrt(len(found))
            interval = f"{mean - half:+.3f} to {mean + half:+.3f}"
            told = "yes" if abs(mean) > half else "no"
        lines.append(f"| {label} | {mean:+.3f} | {interval} | {told} |")
    return lines


def _mean(scores: dict[Run, Score], variants: Sequence[Variant], seed: int) -> float:
    return statistics.mean(scores[Run(variant, seed)].right for variant in variants)


def _contrasts() -> dict[str, tuple[list[Variant], list[Variant]]]:
    """Return (minuend, subtrahend) variants of each difference, by label."""

    def where(**levels: object) -> list[Variant]:
        return [v for v in VARIANTS if levels.items() <= v._asdict().items()]

    found = {}
    for init_b in ("own", "copy"):
        sides = where(cycle=True, init_b=init_b), where(cycle=False, init_b=init_b)
        found[f"cycle on minus off ({init_b}; mean over sharing)"] = sides
    for cycle, name in ((True, "on"), (False, "off")):
        sides = where(cycle=cycle, init_b="copy"), where(cycle=cycle, init_b="own")
        found[f"copy minus own (cycle {name}; mean over sharing)"] = sides
    for cycle, init_b, shared in product((True, False), ("own", "copy"), (1, 2)):
        these = {"cycle": cycle, "init_b": init_b}
        label = f"{shared} shared minus none (cycle {'on' if cycle else 'off'}, {init_b})"
        found[label] = where(shared=shared, **these), where(shared=0, **these)
    return found


if __name__ == "__main__":
    sys.exit(main())
