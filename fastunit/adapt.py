"""Carry a digit classifier to another data set: ``python -m fastunit.adapt [options]``.

The source's labels are used, the target's are not: they only tell, after training and in the
learning curve, how many digits of the target's test split are named right.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastunit import config
from fastunit.common import cli, environment, files, progress
from fastunit.common.errors import ConfigError, TrainingDiverged, UserError
from fastunit.config.fields import build
from fastunit.digits import datasets, step
from fastunit.digits.images import normalised
from fastunit.digits.objective import Settings
from fastunit.digits.step import SOURCE, TARGET, Adaptation
from fastunit.digits.task import SHIFTED, Task, load_task
from fastunit.training.loss_monitor import LossMonitor, Record

with cli.needs("train"):
    import yaml
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from fastunit.report.grid import save_grid
    from fastunit.report.metrics import Metrics, read_metrics
    from fastunit.training.loop import Stop, stop_on_signals

SHOWN = 12  # digits of each domain in the sample grid
TABLE_KEYS = ("source_accuracy", "target_accuracy")


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.adapt") -> int:
    """Parse, check everything, train, measure. Returns the exit code.

    0 done; 1 the training diverged; 2 bad input; 130 and 143 ended by Ctrl-C and SIGTERM: a run
    that was stopped leaves its records, but no result and no checkpoint.
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
    add("--source", choices=names, default="mnist", help="labelled (default: %(default)s)")
    add(
        "--target",
        choices=[*names, SHIFTED],
        default="usps",
        help="not labelled (default: %(default)s); shifted: what `holdout` keeps out of the "
        "source, deformed, to choose settings by",
    )
    add("--data", metavar="DIR", type=Path, required=True, help="folder with the files of both")
    add("--output", metavar="DIR", type=Path, help="default: runs/adapt-SOURCE-TARGET")
    add("--config", metavar="FILE", default="digits", help="YAML (default: ours, digits)")
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="override a key, for instance dis_ch=32; may be repeated",
    )
    add("--iterations", type=int, metavar="N", help="of training (iterations)")
    add("--seed", type=int, metavar="N", help="of weights, noise, order and deformations (seed)")
    add("--source-only", action="store_true", help="train the classifier on the source alone")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dry-run", action="store_true", help="check and print the plan; write nothing")
    return parser


def _run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    device = cli.pick_device(args.device)
    settings = settings_of(args)
    suffix = "-source-only" if args.source_only else ""
    folder = args.output or Path("runs") / f"adapt-{args.source}-{args.target}{suffix}"
    _refuse_to_overwrite(folder)
    task = load_task(args.data, args.source, args.target, settings, device)
    if args.dry_run:
        _print_plan(settings, task, folder, device)
        return 0
    files.write_text(yaml.safe_dump(asdict(settings), sort_keys=False), folder / "config.yaml")
    run = Adaptation(settings, task.channels, device, args.source_only)
    print(f"training on {device}; everything goes to {folder}/", flush=True)
    try:
        with stop_on_signals() as stop:
            accuracies = train(run, task, folder, stop)
    except TrainingDiverged as error:
        print(f"error: {error}; try a lower learning rate (--set lr=...)", file=sys.stderr)
        return 1
    if stop.signal is not None:
        print(f"stopped at iteration {run.iteration}, without a result", file=sys.stderr)
        return 128 + stop.signal
    result = finish(run, task, folder, accuracies, started)
    print(
        f"{result['method']}, {task.names[SOURCE]} to {task.names[TARGET]}, seed "
        f"{settings.seed}: {result['target_accuracy']:.4f} of the target's "
        f"{result['target_tests']} test digits named right ({result['source_accuracy']:.4f} of the "
        f"source's {result['source_tests']}); {result['seconds']:.0f} s; see {folder}/"
    )
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings: the file's, then --set, then the other options."""
    values = config.read_yaml(args.config)
    for text in args.overrides:
        key, sep, value = text.partition("=")
        if not (sep and key.strip()):
            raise ConfigError(f"--set {text!r} must look like key=value, for instance dis_ch=32")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: {value!r} is not valid YAML") from error
    extra = {"iterations": args.iterations, "seed": args.seed}
    settings = build(Settings, values | {k: v for k, v in extra.items() if v is not None}, "")
    if settings.warmup >= settings.iterations and not args.source_only:
        raise ConfigError(
            f"warmup={settings.warmup} leaves none of the iterations={settings.iterations} for "
            "adaptation; lower it with --set warmup=N, or raise --iterations"
        )
    return settings


def train(run: Adaptation, task: Task, folder: Path, stop: Stop) -> dict[str, float]:
    """Train to the end of the settings' iterations or to a signal; record losses and accuracies.

    Returns the accuracies measured last: at the end, those of the last iterate. Raises
    TrainingDiverged when a loss is not finite.
    """
    settings, monitor, accuracies = run.settings, LossMonitor(), {}
    labelled = step.stream(task.source.images, task.source.labels, settings, SOURCE)
    unlabelled = step.stream(task.target, None, settings, TARGET)
    with (
        Metrics(folder) as metrics,
        progress.bar(total=settings.iterations, unit="it", desc="adapting") as bar,
    ):
        while run.iteration < settings.iterations and stop.signal is None:
            (x_a, labels), (x_b, _) = next(labelled), next(unlabelled)
            monitor.add(run.iteration + 1, run.advance(x_a, labels, x_b))
            bar.update()
            now, warmed_up = run.iteration, run.iteration == settings.warmup
            tested = now == settings.iterations or now % settings.test_every == 0
            records = []
            if tested:
                accuracies = measure(run, task)
            if tested or warmed_up or now % settings.log_every == 0:
                records = monitor.flush(accuracies if tested else {})
            if warmed_up:  # other losses follow, which the monitor cannot mix with these
                records += monitor.drain()
                monitor = LossMonitor()
            _write(records, metrics, bar)
        _write(monitor.drain(), metrics, bar)
    return accuracies


def _write(records: list[Record], metrics: Metrics, bar: tqdm) -> None:
    for iteration, values in records:
        metrics.write(iteration, values)
        bar.set_postfix_str(f"classification {values['classification']:.3f}", refresh=False)


def measure(run: Adaptation, task: Task) -> dict[str, float]:
    """Return the accuracy on both test splits, all of them, by the networks as they are now.

    With `holdout`, also that on what of the source is held out, "held_out_accuracy".
    """
    accuracies = {
        key: run.accuracy(task.tests[domain].images, task.tests[domain].labels, domain)
        for key, domain in zip(TABLE_KEYS, (SOURCE, TARGET), strict=True)
    }
    if task.held_out is not None:
        images, labels = task.held_out.images, task.held_out.labels
        accuracies["held_out_accuracy"] = run.accuracy(images, labels, SOURCE)
    return accuracies


def finish(
    run: Adaptation, task: Task, folder: Path, accuracies: dict[str, float], started: float
) -> dict[str, Any]:
    """Write pictures, the checkpoint and, last of all, result.json, whose content is returned."""
    draw_curves(read_metrics(folder), task, folder / "curves.png")
    if not run.source_only:
        save_grid(sample_rows(run, task), folder / "samples.png")
    result = {
        "method": "source only" if run.source_only else "adapted",
        "source": task.names[SOURCE],
        "target": task.names[TARGET],
        "iteration": run.iteration,
        **accuracies,
        "source_tests": len(task.tests[SOURCE].labels),
        "target_tests": len(task.tests[TARGET].labels),
        **({"held_out_count": len(task.held_out.labels)} if task.held_out else {}),
        "seconds": time.perf_counter() - started,
        "settings": asdict(run.settings),
        "environment": environment.describe(run.device),
    }
    networks: dict[str, nn.Module] = {"dis": run.dis, "judge": run.evaluated}
    if not run.source_only:
        networks["gen"] = run.gen
    states = {name: network.state_dict() for name, network in networks.items()}
    plain = {k: result[k] for k in ("method", "source", "target", "iteration", "settings")}
    files.save({**plain, "channels": task.channels, **states}, folder / "checkpoint.pt")
    files.write_json(result, folder / "result.json")
    return result


@torch.no_grad()
def sample_rows(run: Adaptation, task: Task) -> dict[str, Tensor]:
    """Return test digits of both domains, their reconstructions and translations, by label."""
    run.gen.eval()
    x_a, x_b = (normalised(task.tests[domain].images[:SHOWN]) for domain in (SOURCE, TARGET))
    x_aa, x_ba, x_ab, x_bb, _ = run.gen(x_a, x_b)
    run.gen.train()
    a, b = task.names[SOURCE], task.names[TARGET]
    return {
        f"{a}, held out": x_a,
        "reconstructed": x_aa,
        f"as {b}": x_ab,
        f"{b}, held out": x_b,
        "reconstructed ": x_bb,
        f"as {a}": x_ba,
    }


def draw_curves(records: list[dict[str, Any]], task: Task, path: Path) -> None:
    """Write a PNG of the accuracies on both test splits over the iterations."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for key, domain in zip(TABLE_KEYS, (SOURCE, TARGET), strict=True):
        points = [(record["iteration"], record[key]) for record in records if key in record]
        axes.plot(*zip(*points, strict=True), marker=".", label=f"{task.names[domain]} ({key})")
    axes.set(xlabel="iteration", ylabel="accuracy on the test split")
    axes.grid(alpha=0.3)
    axes.legend()
    with files.atomic(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _refuse_to_overwrite(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; give a folder")
    if (folder / "result.json").exists():
        raise UserError(
            f"{folder} has the result of an earlier run (result.json); give another folder with "
            "--output, or delete that one"
        )


def _print_plan(settings: Settings, task: Task, folder: Path, device: torch.device) -> None:
    print(yaml.safe_dump(asdict(settings), sort_keys=False), end="")
    for domain, role in ((SOURCE, "source"), (TARGET, "target")):
        count = len(task.source.images if domain == SOURCE else task.target)
        tests = len(task.tests[domain].labels)
        print(f"{role}: {task.names[domain]}, {count} training digits, {tests} test digits")
    print(f"would train on {device} into {folder}/")


if __name__ == "__main__":
    sys.exit(main())
