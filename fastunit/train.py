"""Train UNIT: ``python -m fastunit.train [options]``; without any, the demo."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastunit import config
from fastunit.common import cli, environment, files
from fastunit.common.errors import TrainingDiverged, UserError
from fastunit.config import Config
from fastunit.training import allocator, checkpoint, memory

with cli.needs("train"):
    from fastunit.data import builtin, discovery, validation
    from fastunit.data.discovery import Domains
    from fastunit.data.image_io import Reading
    from fastunit.data.validation import SizeRule
    from fastunit.report import summary
    from fastunit.training import held_out
    from fastunit.training.loop import Trainer, stop_on_signals
    from fastunit.training.run_dir import Run, find_run
    from fastunit.training.state import Session


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.train") -> int:
    """Parse, check everything, train, measure. Returns the exit code.

    0 done; 1 the training diverged; 2 bad input; 130 and 143 ended by Ctrl-C and SIGTERM, with a
    checkpoint saved.
    """
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    device = cli.pick_device(args.device)
    run = find_run(args.output, args.resume, args.config)
    settings = _configure(args, run)
    if args.dry_run:
        run.restore(Session(settings, device))  # refuses what training would
        _print_plan(settings, run, device)
        return 0
    if device.type == "cpu":
        allocator.keep_freed_memory()
    domains = _checked_files(settings)
    pairs = held_out.find_pairs(domains, settings)
    session = Session(settings, device)
    run.restore(session)
    shown = held_out.shown_images(domains, settings, device)
    with run.claim() as folder:
        _describe(folder, settings, device)
        print(session.manner(), flush=True)
        trainer = Trainer(session, domains, folder, shown, started)
        return _train(trainer, pairs)


def _train(trainer: Trainer, pairs: held_out.Pairs) -> int:
    session, folder = trainer.session, trainer.run_dir
    try:
        with stop_on_signals() as stop:
            finished = trainer.run(stop)
    except TrainingDiverged as error:
        print(f"error: {error}; {_last_good(folder)}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is full ({error}); set checkpoint_activations=true, or lower "
            "batch_size, crop_image_height or crop_image_width (--dry-run shows the expected "
            "memory)"
        ) from error
    if not finished:
        print(f"stopped at iteration {session.iteration}; continue with --resume {folder}")
        assert stop.signal is not None  # what else stops a run
        return 128 + stop.signal
    _print_result(trainer.finish(pairs), folder)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train UNIT on two folders of unpaired images; without options, on the demo.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    add("--config", metavar="FILE", help="YAML file, or the name of one of ours (default: demo)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, for instance gen.dim=32; may be repeated",
    )
    add("--data", metavar="DIR", help="folder with trainA, trainB and, if any, testA, testB")
    add("--output", metavar="DIR", help="the run's folder (default: runs/NAME of the config)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|PATH",
        help="continue: the newest run (of --config), a run's folder, a checkpoint, or a gen_*.pt",
    )
    add("--max-iter", type=int, metavar="N", help="iterations to train (max_iter)")
    add("--seed", type=int, metavar="N", help="seed of weights, noise and data order (seed)")
    add("--dry-run", action="store_true", help="check everything and print the plan, no run")
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


def _checked_files(settings: Config) -> Domains:
    """Find the images and read every new one; raises DataError listing the bad ones."""
    if settings.data.builtin != "none":
        root = builtin.demo_root(builtin=settings.data.builtin)
        settings = replace(settings, data_root=str(root))
    found = discovery.find_domains(settings)
    wanted = {}
    for split in discovery.SPLITS:
        wanted[split] = (getattr(found, split), _rule(settings, split))
    return Domains(
        **validation.validate_all(wanted, workers=settings.threads, skip_bad=settings.data.skip_bad)
    )


def _rule(settings: Config, split: str) -> SizeRule:
    domain = settings.domain(split[-1])
    reading = Reading(domain.channels, domain.value_range, f"data.range_{domain.name}")
    return SizeRule(domain.new_size, settings.crop, reading)


def _describe(run_dir: Path, settings: Config, device: torch.device) -> None:
    """Write what the run depends on: config.yaml and environment.json."""
    files.write_text(config.dump_yaml(settings), run_dir / "config.yaml")
    files.write_json(
        {"seed": settings.seed} | environment.describe(device), run_dir / "environment.json"
    )
    print(
        f"training on {environment.device_name(device)}; everything goes to {run_dir}/", flush=True
    )


def _print_plan(settings: Config, run: Run, device: torch.device) -> None:
    """Print the resolved configuration, parameters, images and expected memory."""
    counts = _image_counts(settings)  # first: it refuses what training would refuse
    print(config.dump_yaml(settings))
    print("parameters:")
    for name, count in memory.parameter_counts(settings).items():
        print(f"  {name}: {count:,}")
    print("images:")
    for split, count in counts.items():
        print(f"  {split}: {count}")
    expected = memory.forecast(settings, device)
    print(f"expected memory: {expected}")
    if missing := memory.shortage(expected, device):
        print(f"warning: {missing}")
    start = f"continues {run.source}" if run.source else "starts afresh"
    print(f"would train on {environment.device_name(device)} into {run.folder}/ ({start})")


def _image_counts(settings: Config) -> dict[str, int]:
    """Return how many images of each split there are, having checked them as training does.

    The demo's are checked by their size alone: they are drawn when training starts.
    """
    if settings.data.builtin != "none":
        height, width = builtin.size(settings.data.builtin)
        validation.require_dali()
        for split in discovery.SPLITS:
            validation.check_channels(_rule(settings, split).reading.channels)
            if reason := _rule(settings, split).problem(height, width):
                raise UserError(
                    f"the drawn pictures of data.builtin={settings.data.builtin} are {reason}"
                )
        return builtin.DEMO_COUNTS
    checked = _checked_files(settings)
    return {split: len(getattr(checked, split)) for split in discovery.SPLITS}


def _last_good(run_dir: Path) -> str:
    kept = checkpoint.iterations(run_dir)
    if not kept:
        return "no checkpoint had been saved before"
    return f"the last good checkpoint is {checkpoint.path_of(run_dir, kept[-1])}"


def _print_result(result: dict[str, Any], run_dir: Path) -> None:
    print(
        f"trained to iteration {result['iteration']}, {result['images_per_s']:.1f} images/s; "
        f"{result['seconds']:.0f} s in all; see {run_dir / 'index.html'}"
    )
    if "a2b" not in result:
        print("no held-out paired error: testA and testB are not pairs of equal names and shapes")
        return
    print("\n".join(summary.lines(result)))


if __name__ == "__main__":
    sys.exit(main())
