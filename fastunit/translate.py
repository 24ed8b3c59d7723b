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
from fastunit.common.choices import DIRECTIONS, PRECISIONS, PROFILES
from fastunit.common.errors import UserError

if TYPE_CHECKING:
    from fastunit.inference.plan import Job

RANDOM = "random"
FORMATS = ("png", "jpg", "webp", "tif", "bmp", "npy")


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
    from fastunit.data.picture import Wanted
    from fastunit.inference.files import FileTranslator, style_of
    from fastunit.inference.plan import plan
    from fastunit.training.loading import load

    device, count = cli.pick_device(args.device), _style_count(args)
    jobs = plan(
        args.input, args.output, args.format and f".{args.format}", styles=count,
        reference=args.style if isinstance(args.style, Path) else None,
    )  # fmt: skip
    given = config.load(args.config) if args.config else None
    limit = args.memory and int(args.memory * 2**30)
    translator = load(args.checkpoint, device, args.precision, config=given, memory=limit)
    reading = {"max_pixels": args.max_pixels, "size": args.size}
    styles = None
    if args.style == RANDOM:
        styles = translator.random_styles(count, args.seed or 0)
    elif args.style:
        styles = style_of(args.style, translator, args.direction, **reading)
    files = FileTranslator(
        translator,
        args.direction,
        **reading,
        batch_size=args.batch_size,
        styles=styles,
        tile=args.tile,
        wanted=Wanted(args.profile, args.keep_alpha, args.keep_exif),
        bits=args.bits,
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
    _print_ranges(translator.config, args.direction, args.bits)
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


def _print_ranges(settings: config.Config, direction: str, bits: int) -> None:
    """Print what the values mean in domains trained with a range of values."""
    source, target = (settings.domain(name) for name in (direction[0], direction[-1]))
    if source.value_range:
        low, high = source.value_range
        print(f"read values {low:.9g}..{high:.9g} as black and white (data.range_{source.name})")
    if target.value_range:
        low, high = target.value_range
        said = f"values {low:.9g}..{high:.9g} of black and white"
        if bits == 8:
            said = f"8 bits: a level v of 0..255 stands for {low:.9g} + v * {(high - low) / 255:g}"
        print(f"wrote {said} (data.range_{target.name})")


def _report(failed: dict[Path, str]) -> None:
    if failed:
        print(f"{len(failed)} images could not be translated:", file=sys.stderr)
    for file, reason in failed.items():
        cli.say(f"  {text.name(file)}: {reason}", sys.stderr)


def _tile(word: str) -> int | str:
    return word if word in ("auto", "off") else cli.positive(word)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Translate an image or a video, or all in a folder, to the other domain.",
        epilog="JPEG is written with quality 95, videos nearly without loss; other formats are "
        "lossless. Exit code: "
        "0, all translated; 1, some could not be translated and are listed; 2, other errors; 3, a "
        "file cannot be written.",
    )
    parser.add_argument("--version", action="version", version=cli.VERSION)
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint, a run's folder, or a release's gen_*.pt"
    )
    parser.add_argument(
        "input", type=Path, help="an image, a video, or a folder, searched recursively"
    )
    parser.add_argument(
        "output", type=Path, help="a folder (subfolders and names are kept), or a file"
    )
    parser.add_argument(
        "--direction", choices=DIRECTIONS, required=True, help="a2b: from domain a to b; or b2a"
    )
    parser.add_argument(
        "--batch-size",
        type=cli.positive,
        default=8,
        help="largest batch size (default: %(default)s); smaller where memory is short",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="auto|off|N",
        help="rows of a large image that are worked on at a time, with the same result and no "
        "seams; auto (the default): where the whole image would need more than the memory",
    )
    parser.add_argument(
        "--memory",
        type=cli.positive_number,
        metavar="GIB",
        help="memory that translation may use; of the CPU, that of this process (default: four "
        "fifths of what is free)",
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
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16, 32),
        default=8,
        help="bits of the results' values: 8 (the default), 16 (PNG, TIFF, npy) or 32 for floating "
        "numbers (TIFF, npy), in the range of values of the training, if it has one",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default="convert",
        help="colour profiles (ICC) of the images: convert to sRGB (the default), keep the values "
        "and the profile, or ignore",
    )
    parser.add_argument(
        "--keep-alpha", action="store_true", help="give the results the transparency of the images"
    )
    parser.add_argument(
        "--keep-exif",
        action="store_true",
        help="give the results the EXIF data of the images, without thumbnails",
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
