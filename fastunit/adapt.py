"""Carry a digit classifier to another data set: ``python -m fastunit.adapt [options]``.

The source's labels are used, the target's are not: they only tell, after training and in the
learning curve, how many digits of the target's test split are named right.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import TrainingDiverged
from fastunit.digits import datasets
from fastunit.digits.objective import Settings, settings_from
from fastunit.digits.step import SOURCE, TARGET
from fastunit.digits.task import SHIFTED, Task, load_task

if TYPE_CHECKING:
    from fastunit.training.run_dir import Run


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.adapt") -> int:
    """Parse, check everything, train, measure. Returns the exit code.

    0 done; 1 the training diverged; 2 bad input; 3 a file cannot be written; 129, 130 and 143 ended
    by SIGHUP, Ctrl-C and SIGTERM, with a checkpoint saved.
    """
    args = parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _run(args))


def parser(prog: str = "python -m fastunit.adapt") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Learn to name the digits of a data set without its labels, from another's.",
    )
    add, names = parser.add_argument, list(datasets.SHAPES)
    add("--version", action="version", version=cli.VERSION)
    add("--source", choices=names, help="labelled (default: mnist)")
    add(
        "--target",
        choices=[*names, SHIFTED],
        help="not labelled (default: usps); shifted: what `holdout` keeps out of the source, "
        "deformed, to choose settings by",
    )
    add("--data", metavar="DIR", type=Path, required=True, help="folder with the files of both")
    add("--output", metavar="DIR", help="the run's folder (default: runs/adapt-SOURCE-TARGET)")
    add("--config", metavar="FILE|NAME", help="YAML file (default: the built-in one, digits)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, for instance dis_ch=32; may be repeated",
    )
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|PATH",
        help="continue: the newest run (of --source and --target), a run's folder, or a checkpoint",
    )
    # --iterations is what --max-iter was called at first.
    add(
        "--max-iter",
        "--iterations",
        type=cli.count,
        metavar="N",
        dest="iterations",
        help="iterations to train (iterations)",
    )
    add("--seed", type=cli.count, metavar="N", help="seed of weights, noise and data order (seed)")
    add("--source-only", action="store_true", help="train the classifier on the source alone")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dry-run", action="store_true", help="check everything, print the plan, write nothing")
    return parser


def _run(args: argparse.Namespace) -> int:
    # Not at the top: --help needs no package of the extra.
    from fastunit.digits.state import SOURCE_ONLY, AdaptationState
    from fastunit.digits.trainer import Trainer
    from fastunit.training import run_dir
    from fastunit.training.stopping import stop_on_signals

    started = time.perf_counter()
    device = cli.pick_device(args.device)
    source, target, source_only = args.source or "mnist", args.target or "usps", args.source_only
    suffix = "-source-only" if source_only else ""
    run = run_dir.find_run(args.output, args.resume, f"{run_dir.ADAPT}{source}-{target}{suffix}")
    settings = settings_of(args, run)
    if run.state is not None:  # which holds for what the command line leaves open
        source = args.source or run.state.get("source", source)
        target = args.target or run.state.get("target", target)
        source_only = source_only or run.state.get("method") == SOURCE_ONLY
    task = load_task(args.data, source, target, settings, device)
    state = AdaptationState(settings, task, device, source_only)
    run.restore(state)
    if args.dry_run:
        _print_plan(settings, task, run, device)
        return 0
    with run.claim() as folder:
        run_dir.describe(folder, settings, device)
        trainer = Trainer(state, folder, started)
        try:
            with stop_on_signals() as stop:
                trainer.run(stop)
        except TrainingDiverged as error:
            print(f"error: {error}; try a lower learning rate (--set lr=...)", file=sys.stderr)
            return 1
        if stop.signal is not None:
            going_on = f"continue with --data {args.data} --resume {folder}"
            print(f"stopped at iteration {state.iteration}; {going_on}")
            return 128 + stop.signal
        result = trainer.finish()
    print(
        f"{result['method']}, {source} to {target}, seed {settings.seed}: "
        f"{result['target_accuracy']:.4f} of the target's {result['target_tests']} test digits "
        f"named right ({result['source_accuracy']:.4f} of the source's {result['source_tests']}); "
        f"{result['seconds']:.0f} s; see {folder}/"
    )
    return 0


def settings_of(args: argparse.Namespace, run: Run | None = None) -> Settings:
    """Return the settings: the file's or the continued run's, then --set, then other options."""
    if run is not None and run.state is not None:
        values = run.values(args.config, settings_from)
    else:
        values = config.read_yaml(args.config or "digits")
    extra = {"iterations": args.iterations, "seed": args.seed}
    extra = {key: value for key, value in extra.items() if value is not None}
    return config.resolve(values, args.overrides, extra, settings_from)


def _print_plan(settings: Settings, task: Task, run: Run, device: torch.device) -> None:
    print(config.dump_yaml(settings), end="")
    for domain, role in ((SOURCE, "source"), (TARGET, "target")):
        count = len(task.source.images if domain == SOURCE else task.target)
        tests = len(task.tests[domain].labels)
        print(f"{role}: {task.names[domain]}, {count} training digits, {tests} test digits")
    print(f"would train on {device} into {run.folder}/ ({run.start})")


if __name__ == "__main__":
    sys.exit(main())
