"""Measure translations on test images: ``python -m fastunit.evaluate CHECKPOINT --data DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastunit import config as configuration
from fastunit.common import cli
from fastunit.common.choices import DIRECTIONS
from fastunit.common.errors import UserError

if TYPE_CHECKING:
    import torch

    from fastunit.config import Config
    from fastunit.evaluation.features import Extractor
    from fastunit.models.domain_pair import DomainPair
    from fastunit.report.scores import Example, Names
    from fastunit.training.scoring import Scorer, Scores

EXAMPLES = 4  # of the best and of the worst images
FEATURES = ("auto", "efficientnet", "inception", "none")


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.evaluate") -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 3 a file is not written."""
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _evaluate(args))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure translations of test images: distances between sets of images, "
        "errors of true pairs beside baselines without a network, and cycle errors.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    add("checkpoint", type=Path, help="a checkpoint, a run's folder, or a release's gen_*.pt")
    add(
        "--data",
        metavar="DIR",
        help="folder with testA and testB to measure, and trainA and trainB, which give the floor "
        "and the baselines (default: the run's own data)",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="for scores.json and index.html (default: evaluation in the run's folder)",
    )
    add(
        "--features",
        choices=FEATURES,
        default="auto",
        help="network whose features are compared: inception (KID and FID, needs --inception), "
        "efficientnet (offline), none; auto: the first of them that is there",
    )
    add("--inception", metavar="FILE", type=Path, help="Inception's weights, of torch-fidelity")
    add("--all", action="store_true", help="score every kept checkpoint of a run")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--config", metavar="FILE|NAME", help="configuration of a gen_*.pt, which contains none")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    # Not at the top: --help needs neither PyTorch nor the extra.
    from fastunit.common import files
    from fastunit.report import scores as report
    from fastunit.training import checkpoint, scoring
    from fastunit.training.run import checked_files

    device = cli.pick_device(args.device)
    extractor = _extractor(args, device)
    names = None if extractor is None else report.Names(extractor.kernel, extractor.frechet)
    given = configuration.load(args.config) if args.config else None
    paths = _checkpoints(args)
    pair, settings = checkpoint.load_generators(paths[-1], given)
    if given is not None and settings is not given:
        raise UserError(f"{paths[-1]} has its own configuration; leave out --config")
    settings = _with_data(settings, args.data)
    scorer = scoring.Scorer(settings, checked_files(settings), extractor, device)
    output = args.output or _output(args.checkpoint)
    every: list[tuple[int, Scores]] = []
    rankings: dict[str, Any] = {}
    for path in paths:
        pair, _ = checkpoint.load_generators(path, given)
        pair = pair.to(device)
        found, rankings = scorer.score(pair)
        every.append((int(path.stem) if path.stem.isdecimal() else 0, found))
    scores = every[-1][1]
    label = extractor.label if extractor else None
    content = {
        "checkpoint": str(paths[-1]),
        "features": label,
        "images": {name: len(each) for name, each in scorer.files.items()},
        "scores": scoring.plain(scores),
    }
    if args.all:
        content["checkpoints"] = {
            str(path): scoring.plain(each) for path, (_, each) in zip(paths, every, strict=True)
        }
    notes = [_note(names)]
    page = report.page(
        f"Evaluation of {paths[-1]}", scores, names, _examples(scorer, pair, rankings), notes
    )
    files.write_json(content, output / "scores.json")
    files.write_text(page, output / "index.html")
    print("\n".join([*report.lines(scores, names), *notes]))
    if args.all:
        _print_all(every, names)
    cli.say(f"see {output / 'index.html'} and {output / 'scores.json'}")
    return 0


def _extractor(args: argparse.Namespace, device: torch.device) -> Extractor | None:
    from fastunit.evaluation import features

    name = args.features
    if name == "auto":
        offline = "efficientnet" if features.efficientnet_installed() else "none"
        name = "inception" if args.inception else offline
    if name == "none":
        return None
    return features.load(name, args.inception, device)


def _note(names: Names | None) -> str:
    from fastunit.common import extras
    from fastunit.evaluation.features import INCEPTION_URL

    if names is None:
        return (
            "no distances between sets: they need --inception FILE (KID and FID; the file is "
            f"{INCEPTION_URL}) or the offline features; install these with: "
            f"{extras.install('evaluate')}"
        )
    if names.kernel == "KID":
        return "features of Inception; the Fréchet distance depends on the number of images"
    return (
        "the distances are of EfficientNet-Lite0's features, not Inception's: compare them with "
        "each other only, never with published KID and FID"
    )


def _checkpoints(args: argparse.Namespace) -> list[Path]:
    from fastunit.training import checkpoint

    if not args.checkpoint.is_dir():
        if args.all:
            raise UserError(f"--all is for a run's folder, and {args.checkpoint} is none")
        return [args.checkpoint]
    found = checkpoint.iterations(args.checkpoint)
    if not found:
        raise UserError(f"the folder {args.checkpoint} has no checkpoints/XXXXXXXX.pt")
    paths = [checkpoint.path_of(args.checkpoint, iteration) for iteration in found]
    return paths if args.all else paths[-1:]


def _with_data(settings: Config, data: str | None) -> Config:
    if data is None:
        return settings
    without = dict.fromkeys(configuration.DATA_KEYS) | {"data_root": data}
    return replace(settings, **without, data=replace(settings.data, builtin="none"))


def _output(path: Path) -> Path:
    run = path if path.is_dir() else path.parent.parent
    inside = path.is_dir() or (run / "config.yaml").is_file()
    return (run if inside else Path()) / "evaluation"


def _examples(
    scorer: Scorer, pair: DomainPair, rankings: dict[str, Any]
) -> dict[str, dict[str, list[Example]]]:
    from fastunit.report.grid import to_pixels
    from fastunit.report.scores import Example, find_name

    found: dict[str, dict[str, list[Example]]] = {}
    for way in DIRECTIONS:
        ranking = rankings[way]
        count = min(EXAMPLES, len(ranking) // 2)
        chosen = {"best": ranking[:count], "worst": ranking[::-1][:count]}
        found[way] = {}
        for kind, each in chosen.items():
            images = scorer.examples(pair, way, [file for _, file in each])
            others = [file for _, file in ranking]
            found[way][kind] = [
                Example(
                    find_name(file, others),
                    error,
                    [to_pixels(x[None])[0].cpu().numpy() for x in row if x is not None],
                )
                for (error, file), row in zip(each, images, strict=True)
            ]
    return found


def _print_all(every: list[tuple[int, Scores]], names: Names | None) -> None:
    from fastunit.report.scores import checkpoint_rows

    rows = checkpoint_rows(every, names)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\nall checkpoints")
    for row in rows:
        print("  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
