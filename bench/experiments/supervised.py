"""The demo's ceiling: its networks trained on pairs, ``python -m bench.experiments.supervised``.

The demo learns from unpaired images. A lower bound for its error is found by training the same
generators, with the same iterations, batches, crops, Adam and moving average, on true pairs: by
minimizing the mean absolute difference from the true image in both directions. The training pairs
are the scenes of the demo's trainA, drawn by day and by night; the evaluation is on the demo's
held-out pairs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.optim import Optimizer

from fastunit import config
from fastunit.common import cli
from fastunit.common.progress import STDERR
from fastunit.config import Config
from fastunit.training import allocator
from fastunit.training.objective import Batch, Losses
from fastunit.training.step import TrainStep

with cli.needs("train"):
    from tqdm import tqdm

    from fastunit.data import builtin, discovery
    from fastunit.data.pipeline import DomainLoader
    from fastunit.report import summary
    from fastunit.training import evaluate, held_out
    from fastunit.training.state import TrainState


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0: done, 2: a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.supervised", description=__doc__
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    args = parser.parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    allocator.keep_freed_memory()
    for seed in args.seeds:
        settings = config.load(None, [*args.changes, f"seed={seed}"])
        print(f"seed {seed}", *summary.lines(ceiling(settings)), sep="\n", flush=True)
    return 0


def ceiling(settings: Config) -> dict:
    """Train on true pairs; return the result of `evaluate.measure`, and "pairs"."""
    device = torch.device("cpu")
    demo = discovery.find_domains(replace(settings, data_root=str(builtin.demo_root())))
    state = TrainState(replace(settings, share_fakes=False), device)
    supervise(state.step)
    with TemporaryDirectory() as folder:
        builtin.draw_training_pairs(Path(folder), len(demo.train_a))
        loaders = [_loader(settings, Path(folder, name)) for name in ("trainA", "trainB")]
        for _ in tqdm(range(settings.max_iter), f"seed {settings.seed}", file=STDERR):
            state.advance(*map(next, loaders))
    pairs = held_out.find_pairs(demo, settings)
    found = evaluate.measure(state.generator_pair, pairs, demo, settings, device)
    return found | {"pairs": len(pairs)}


def supervise(step: TrainStep) -> None:
    """Make a step minimize the error of both translations, with its own Adam, rate and average.

    `share_fakes` must be off in the configuration.
    """

    descend = step.descend

    def translations(batch: Batch) -> Losses:
        losses = {
            "a2b": F.l1_loss(step.unit.translate(batch.x_a, "a2b"), batch.x_b),
            "b2a": F.l1_loss(step.unit.translate(batch.x_b, "b2a"), batch.x_a),
        }
        # The reconstruction's weight: relative to it, weight decay is as strong as in the demo.
        return losses | {"supervised": step.config.recon_x_w * sum(losses.values())}

    def supervised(optimizer: Optimizer, _: str, __: object, batch: Batch) -> Losses:
        if optimizer is step.dis_opt:
            return {}
        return descend(optimizer, "supervised", translations, batch)

    step.descend = supervised


def _loader(settings: Config, folder: Path) -> DomainLoader:
    domain = settings.domain("a")
    return DomainLoader(
        discovery.image_files(folder),
        channels=domain.channels,
        new_size=domain.new_size,
        batch_size=settings.batch_size,
        crop=settings.crop,
        seed=settings.seed,
        stream=0,  # for both domains: the same order, crops and flips
        device=torch.device("cpu"),
        threads=settings.num_workers,
    )


if __name__ == "__main__":
    sys.exit(main())
