"""Export trained networks: ``python -m fastunit.export CHECKPOINT OUT --direction a2b``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastunit import config as configuration
from fastunit.common import cli, text
from fastunit.common.choices import DIRECTIONS
from fastunit.common.errors import DataError, UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fastunit.common.choices import Direction
    from fastunit.config import Config
    from fastunit.data.image_io import Reading
    from fastunit.inference.export import Format

FORMATS = ("onnx", "pt2", "safetensors")
CHECKED = 4  # images that an exported file is compared on


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.export") -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done; 2 bad input or a wrong result; 3 the file cannot be written.
    """
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: _export(args), extra="export")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write trained generators as ONNX, torch.export or safetensors, and compare "
        "the file's translations of real images with PyTorch's.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    add("checkpoint", type=Path, help="a checkpoint, a run's folder, or a release's gen_*.pt")
    add("output", type=Path, help="the file to write")
    add("--format", choices=FORMATS, help="default: that of the output's extension")
    add("--direction", choices=DIRECTIONS, help="a2b or b2a; safetensors holds both")
    add(
        "--images",
        type=Path,
        metavar="PATH",
        help="image or folder to compare on (default: the run's test images, or drawn scenes)",
    )
    add("--config", metavar="FILE|NAME", help="configuration of a gen_*.pt, which contains none")
    return parser


def _export(args: argparse.Namespace) -> int:
    # Not at the top: --help needs neither PyTorch nor the extra.
    from fastunit.common import files
    from fastunit.inference import export
    from fastunit.models.domain_pair import DomainPair
    from fastunit.training.loading import load

    name = _format(args)
    direction = args.direction or "a2b"
    given = configuration.load(args.config) if args.config else None
    translator = load(args.checkpoint, "cpu", "fp32", config=given)
    pair = translator.networks
    target = args.output
    if target.exists() and not target.is_file():
        raise UserError(f"{target} is not a file; choose another output")
    if not isinstance(pair, DomainPair):
        raise UserError(f"{args.checkpoint} is an exported file already; give the checkpoint")
    images = _images(args.images, translator.config, direction)
    with files.atomic(target) as temporary:  # nothing is left of a file that is not right
        export.export(pair, translator.config, temporary, name, direction)
        worst = export.check(temporary, pair, direction, images)
    sizes = ", ".join("x".join(map(str, x.shape)) for x in images)
    cli.say(
        f"wrote {target}: {name}, {'both directions' if name == 'safetensors' else direction}, "
        f"{target.stat().st_size / 2**20:.1f} MiB; largest error {worst:.1g} of the range, on "
        f"images of {sizes}"
    )
    return 0


def _format(args: argparse.Namespace) -> Format:
    suffix = args.output.suffix.lower().lstrip(".")
    name = args.format or suffix
    if name not in FORMATS or suffix != name:
        raise UserError(
            f"{args.output} must end in .{args.format}"
            if args.format
            else f"cannot tell a format from the name {args.output}: end it in "
            f"{', '.join('.' + each for each in FORMATS)}, or give --format"
        )
    if args.direction is None and name != "safetensors":
        raise UserError(f"{name} holds one direction; give --direction a2b or b2a")
    return name


def _images(path: Path | None, config: Config, direction: Direction) -> list[Tensor]:
    """Return batches to compare on; of images of one size one alone, and all together."""
    import numpy as np
    import torch

    from fastunit.data import image_io, scenes

    domain = config.domain(direction[0])
    if files := _files(path, config, direction):
        pixels = [_decoded(file, image_io.reading_of(config, domain.name)) for file in files]
    else:
        drawn = (scenes.make_scene(np.random.default_rng([0, i])) for i in range(CHECKED))
        pixels = [scenes.render(scene, night=direction == "b2a") for scene in drawn]
        if domain.channels == 1:
            pixels = [each.mean(2, keepdims=True).astype(np.uint8) for each in pixels]
    images = [torch.from_numpy(x.copy()).permute(2, 0, 1)[None] for x in pixels]
    batches = [x / 127.5 - 1 if x.dtype == torch.uint8 else x for x in images]
    if len({x.shape for x in batches}) == 1:
        return [batches[0], torch.cat(batches)]
    return batches


def _decoded(file: Path, reading: Reading) -> np.ndarray:
    from fastunit.data import decoding

    try:
        return decoding.decode(file, reading)
    except DataError as error:
        raise DataError(f"{text.name(file)}: {error}") from error


def _files(path: Path | None, config: Config, direction: Direction) -> list[Path]:
    """Return the files to compare on: those given, or the run's own test images, if any."""
    from fastunit.data.discovery import find_domains, image_files

    if path is not None:
        if not path.exists():
            raise DataError(f"--images {path} does not exist")
        return [path] if path.is_file() else list(image_files(path)[:CHECKED])
    try:
        found = find_domains(config)
    except DataError:  # the built-in domains, or files that are not on this machine
        return []
    name = direction[0]
    return list((getattr(found, f"test_{name}") or getattr(found, f"train_{name}"))[:CHECKED])


if __name__ == "__main__":
    sys.exit(main())
