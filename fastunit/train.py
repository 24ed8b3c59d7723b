"""Train UNIT: ``python -m fastunit.train [options]``; without options, the demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastunit import config
from fastunit.common import cli
from fastunit.common.errors import ConfigError, TrainingDiverged
from fastunit.config import Config

if TYPE_CHECKING:
    import torch

    from fastunit.training.run_dir import Run

DEMO_IMAGES = 128  # pixels of a shorter side from which images are no case for the demo's settings


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.train") -> int:
    """Parse the arguments, check everything, train and evaluate.

    Returns:
        The exit code: 0 done; 1 training diverged; 2 bad input; 3 a file cannot be written; 4 no
            progress, with stall_action=exit; 129, 130 or 143 stopped by SIGHUP, Ctrl-C or SIGTERM
            after saving a checkpoint.
    """
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    # Here and below, not at the top: --help needs neither PyTorch nor the extra.
    from fastunit.training.run import train
    from fastunit.training.run_dir import find_run

    device = cli.pick_device(args.device)
    run = find_run(args.output, args.resume, args.config and Path(args.config).stem)
    settings = _configure(args, run)
    if args.data is not None and args.config is None and not run.source:
        _check_demo_settings(settings, args)
    if args.dry_run:
        _print_plan(settings, run, device)
        return 0
    try:
        done = train(settings, run, device, signals=True)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if done.signal is not None:
        print(f"stopped at iteration {done.iteration}; continue with --resume {done.folder}")
        return 128 + done.signal
    _print_result(done.measures, done.folder)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train UNIT on two folders of unpaired images; without options, on the demo.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    shipped = ", ".join(name for name in config.names() if name != "digits")  # that is adapt's
    add(
        "--config",
        metavar="FILE|NAME",
        help=f"YAML file, or a built-in configuration: {shipped} (default: demo)",
    )
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, for instance gen.dim=32; may be repeated",
    )
    add("--data", metavar="DIR", help="folder with trainA, trainB and optionally testA, testB")
    add("--output", metavar="DIR", help="the run's folder (default: runs/NAME of the config)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|PATH",
        help="continue: the newest run (of --config), a run's folder, a checkpoint, or a gen_*.pt",
    )
    add("--max-iter", type=cli.count, metavar="N", help="iterations to train (max_iter)")
    add("--seed", type=cli.count, metavar="N", help="seed of weights, noise and data order (seed)")
    add(
        "--dry-run",
        action="store_true",
        help="check everything, time a few steps and print the plan; write nothing",
    )
    return parser


def _configure(args: argparse.Namespace, run: Run) -> Config:
    """Return the configuration: file or checkpoint, then --set, then the other options."""
    extra = {"max_iter": args.max_iter, "seed": args.seed}
    extra = {key: value for key, value in extra.items() if value is not None}
    values = run.values(args.config)
    if args.data is not None:
        extra |= dict.fromkeys(config.DATA_KEYS) | {"data_root": args.data}
        values["data"] = (values.get("data") or {}) | {"builtin": "none"}
    return config.resolve(values, args.overrides, extra)


def _check_demo_settings(settings: Config, args: argparse.Namespace) -> None:
    """Raise ConfigError if large images would be trained on with the demo's settings by default."""
    from fastunit.data import discovery, sizes
    from fastunit.data.file_list import Files

    chosen = ("crop_image_", "new_size")
    if any(text.startswith(chosen) for text in args.overrides):
        return
    found = discovery.find_domains(settings)
    side = sizes.shorter_side(Files(Files(found.train_a).names + Files(found.train_b).names))
    if side >= DEMO_IMAGES:
        crop = "x".join(map(str, settings.crop))
        raise ConfigError(
            f"the images in {args.data} are about {side} pixels on their shorter side, but without "
            f"--config they would be trained on at {crop} by the demo's small networks; use "
            "--config photos, or --config demo to do that all the same"
        )


def _print_plan(settings: Config, run: Run, device: torch.device) -> None:
    """Print the resolved configuration, parameters, images and expected memory."""
    from fastunit.common import environment
    from fastunit.training import estimates, memory
    from fastunit.training.run import dry_run

    plan = dry_run(settings, run, device)  # first: it raises the errors that training would
    print(config.dump_yaml(settings))
    print("parameters:")
    for name, count in memory.parameter_counts(settings).items():
        print(f"  {name}: {count:,}")
    print("images:")
    for split, count in plan.images.items():
        print(f"  {split}: {count}")
    expected = memory.forecast(settings, device)
    print(f"expected memory: {expected}")
    if missing := memory.shortage(expected, device):
        print(f"warning: {missing}")
    print("\n".join(plan.estimate.lines()))
    if missing := estimates.disk_shortage(plan.estimate.disk, run.folder):
        print(f"warning: {missing}")
    print(f"would train on {environment.device_name(device)} into {run.folder}/ ({run.start})")


def _print_result(result: dict[str, Any], run_dir: Path) -> None:
    from fastunit.report import summary

    print(
        f"trained to iteration {result['iteration']}, {result['images_per_s']:.1f} images/s; "
        f"{result['seconds']:.0f} s in all; see {run_dir / 'index.html'}"
    )
    if "best" in result:
        print(
            f"best by held-out training images: iteration {result['best']['iteration']}, "
            f"{run_dir / 'checkpoints' / 'best.pt'}"
        )
    if "a2b" not in result:
        print("no held-out error: testA and testB are not pairs of equal names and shapes")
        return
    print("\n".join(summary.lines(result)))


if __name__ == "__main__":
    sys.exit(main())
