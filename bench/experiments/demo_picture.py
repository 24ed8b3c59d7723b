"""The README's image: ``python -m bench.experiments.demo_picture runs/demo docs/images/demo.png``.

Six held-out scenes in labelled rows: input, translation and truth, for both directions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fastunit.common import cli
from fastunit.training import checkpoint

with cli.needs("train"):
    from fastunit.data import builtin, discovery
    from fastunit.report import grid
    from fastunit.training import held_out

SHOWN = 6  # scenes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0: done, 2: a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.demo_picture", description=__doc__
    )
    parser.add_argument("run", type=Path, help="the folder of a run of the demo, or a checkpoint")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    args = parser.parse_args(argv)
    return cli.guard(lambda: _draw(args))


@torch.no_grad()
def _draw(args: argparse.Namespace) -> int:
    pair, settings = checkpoint.load_generators(args.run)
    demo = discovery.find_domains(replace(settings, data_root=str(builtin.demo_root())))
    settings = replace(settings, display_size=SHOWN)
    day, night = held_out.shown_images(demo, settings, torch.device("cpu"))
    rows = {
        "day, held out": day,
        "translated to night": pair.translate(day, "a2b"),
        "the true night": night,
        "night, held out": night,
        "translated to day": pair.translate(night, "b2a"),
        "the true day": day,
    }
    grid.save_grid(rows, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
