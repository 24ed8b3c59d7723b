"""Translate image files with trained networks: ``python -m fastunit.translate``.

Inputs are never overwritten: before anything is written, every output path is compared with every
input, links resolved. Other existing files at an output path are replaced.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastunit import config
from fastunit.common import cli, text
from fastunit.common.choices import DIRECTIONS, PRECISIONS
from fastunit.common.errors import UserError

if TYPE_CHECKING:
    from fastunit.inference.plan import Job

FORMATS = ("png", "jpg", "webp", "tif", "bmp")
RANDOM = "random"


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.translate") -> int:
    """Run the command line.

    Returns:
        The exit code: 0 all translated; 1 some failed; 2 bad input; 3 a file cannot be written.
    """
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _translate(args), extra="translate")


def _translate(args: argparse.Namespace) -> int:
    # Not at the top: --help needs neither PyTorch nor the extra.
    from fastunit.inference.files import FileTranslator, style_of
    from fastunit.inference.plan import plan
    from fastunit.training.loading import load

    device, count = cli.pick_device(args.device), _style_count(args)
    jobs = plan(
        args.input, args.output, args.format and f".{args.format}", styles=count,
        reference=args.style if isinstance(args.style, Path) else None,
    )  # fmt: skip
    given = config.load(args.config) if args.config else None
    translator = load(args.checkpoint, device, args.precision, config=given)
    reading = {"max_pixels": args.max_pixels, "size": args.size}
    styles = None
    if args.style == RANDOM:
        styles = translator.random_styles(count, args.seed or 0)
    elif args.style:
        styles = style_of(args.style, translator, args.direction, **reading)
    files = FileTranslator(
        translator, args.direction, batch_size=args.batch_size, styles=styles, **reading
    )
    start = time.perf_counter()
    try:
        files.run(jobs)
    finally:  # list the failed files even if an error ends the run
        _report(files.failed)
    seconds, done = time.perf_counter() - start, len(jobs) - len(files.failed)
    cli.say(
        f"translated {done} of {len(jobs)} images {args.direction} in {seconds:.1f} s "
        f"({done / seconds:.1f} images/s) to {_place(jobs, args.output)}"
    )
    _print_ranges(translator.config, args.direction)
    return 1 if files.failed else 0


def _place(jobs: Sequence[Job], output: Path) -> str:
    """Return where the translations are."""
    if len(jobs) > 1:
        return str(output)
    return " to ".join(map(str, dict.fromkeys((jobs[0].targets[0], jobs[0].targets[-1]))))


def _style_count(args: argparse.Namespace) -> int:
    """Return the number of styles of each image.

    Raises:
        UserError: --num-styles or --seed is given without --style random.
    """
    for option, value in (("--num-styles", args.num_styles), ("--seed", args.seed)):
        if value is not None and args.style != RANDOM:
            raise UserError(f"{option} {value} is for --style random; add that, or leave it out")
    return args.num_styles or 1


def _style(text: str) -> str | Path:
    return text if text == RANDOM else Path(text)


def _print_ranges(settings: config.Config, direction: str) -> None:
    """Print what 0..255 means in domains trained with a range of 16-bit values."""
    source, target = (settings.domain(name) for name in (direction[0], direction[-1]))
    if source.value_range:
        low, high = source.value_range
        print(f"read 16-bit values {low}..{high} as 0..255 (data.range_{source.name})")
    if target.value_range:
        low, high = target.value_range
        print(
            f"wrote 8 bits: a level v of 0..255 stands for {low} + v * {(high - low) / 255:g} "
            f"(data.range_{target.name})"
        )


def _report(failed: dict[Path, str]) -> None:
    if failed:
        print(f"{len(failed)} images could not be translated:", file=sys.stderr)
    for file, reason in failed.items():
        cli.say(f"  {text.name(file)}: {reason}", sys.stderr)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Translate an image, or all images in a folder, to the other domain.",
        epilog="JPEG is written with quality 95; PNG, BMP, TIFF and WebP are lossless. Exit code: "
        "0, all translated; 1, some could not be translated and are listed; 2, other errors; 3, a "
        "file cannot be written.",
    )
    parser.add_argument("--version", action="version", version=cli.VERSION)
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint, a run's folder, or a release's gen_*.pt"
    )
    parser.add_argument("input", type=Path, help="an image, or a folder, searched recursively")
    parser.add_argument(
        "output", type=Path, help="a folder (subfolders and names are kept), or an image"
    )
    parser.add_argument(
        "--direction", choices=DIRECTIONS, required=True, help="a2b: from domain a to b; or b2a"
    )
    parser.add_argument(
        "--batch-size",
        type=cli.positive,
        default=8,
        help="largest batch size (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=cli.positive,
        metavar="N",
        help="largest image that is read (default: data.max_pixels of the training)",
    )
    parser.add_argument(
        "--size",
        type=cli.positive,
        metavar="N",
        help="resize images to a shorter side of N pixels first (default: as they are)",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the results in a folder (default: that of each input)",
    )
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision",
        choices=[name for name in PRECISIONS if name != "inherit"],
        default="auto",
        help="compute dtype of convolutions and matmuls; auto (the default): bf16 where the GPU "
        "supports it, else fp32",
    )
    parser.add_argument(
        "--style",
        type=_style,
        metavar="random|FILE",
        help="for MUNIT: draw styles, or take that of an image of the target domain (default: the "
        "mean of all styles)",
    )
    parser.add_argument(
        "--num-styles",
        type=cli.positive,
        metavar="N",
        help="with --style random: translations of each image, named NAME-1, NAME-2, ... "
        "(default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=cli.count,
        metavar="N",
        help="with --style random: of the styles (default: 0)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="the YAML configuration for a gen_*.pt of the 2018 release, which contains none",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
