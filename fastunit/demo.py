"""A local page to try a model on: ``python -m fastunit.demo CHECKPOINT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastunit import config as configuration
from fastunit.common import cli
from fastunit.common.choices import DIRECTIONS, Direction
from fastunit.common.errors import DataError, UserError

if TYPE_CHECKING:
    from fastunit.inference.demo import Server
    from fastunit.inference.translator import Translator

HOST, PORT = "127.0.0.1", 7860
EXAMPLES = 4  # of each domain


def main(argv: Sequence[str] | None = None, prog: str = "python -m fastunit.demo") -> int:
    """Run the command line; returns the exit code: 0 ended by Ctrl-C, 2 bad input."""
    args = _parser(prog).parse_args(argv)
    cli.setup_logging()
    return cli.guard(lambda: serve(server(args)), extra="translate")


def serve(server: Server, ready: Callable[[], object] | None = None) -> int:
    """Serve until Ctrl-C; `ready` is called before."""
    host, port = server.server_address[:2]
    print(f"open http://{host!s}:{port}/ in a browser; Ctrl-C ends it", flush=True)
    with server:
        if ready is not None:
            ready()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def server(args: argparse.Namespace) -> Server:
    """Load the networks and return the server, already bound to its port."""
    # Not at the top: --help needs neither PyTorch nor the extra.
    from fastunit.data.image_io import Limits
    from fastunit.inference.demo import LOCAL, STYLES, Server
    from fastunit.models.styled_pair import StyledPair
    from fastunit.report.demo_page import demo_page
    from fastunit.training.loading import load

    given = configuration.load(args.config) if args.config else None
    translator = load(args.checkpoint, cli.pick_device(args.device), config=given)
    examples = _examples(translator, args.images)
    ways = {"a2b": "a to b", "b2a": "b to a"}
    ways = {way: text for way, text in ways.items() if way in _directions(translator)}
    styles = STYLES if isinstance(translator.networks, StyledPair) else 0
    page = demo_page(f"fastunit: {args.checkpoint}", ways, [way for way, _ in examples], styles)
    limits = Limits(args.max_pixels, args.max_mb * 2**20, key="--max-pixels")
    if args.host not in LOCAL:
        cli.say(f"warning: anyone who reaches {args.host} can use this page", sys.stderr)
    try:
        address = (args.host, args.port)
        return Server(translator, address, page, [file for _, file in examples], limits)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {args.host}:{args.port}: {error}; choose another --port"
        ) from error


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve a page on this machine, on which images are dropped and translated.",
    )
    add = parser.add_argument
    add("--version", action="version", version=cli.VERSION)
    add("checkpoint", type=Path, help="a run's folder, a checkpoint, a gen_*.pt or an export")
    add(
        "--images",
        metavar="DIR",
        help="folder with testA and testB for examples (default: the run's own data)",
    )
    add("--host", default=HOST, help="address to listen on (default: %(default)s, this machine)")
    add("--port", type=cli.count, default=PORT, help="0: a free one (default: %(default)s)")
    add(
        "--max-pixels",
        type=cli.positive,
        default=4_000_000,
        metavar="N",
        help="largest image (default: %(default)s)",
    )
    add(
        "--max-mb",
        type=cli.positive,
        default=20,
        metavar="N",
        help="largest file, in MiB (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--config", metavar="FILE|NAME", help="configuration of a gen_*.pt, which contains none")
    return parser


def _directions(translator: Translator) -> list[Direction]:
    found: list[Direction] = []
    for way in DIRECTIONS:
        try:
            translator.networks.along(way)
        except UserError:  # an exported file holds one direction
            continue
        found.append(way)
    return found


def _examples(translator: Translator, folder: str | None) -> list[tuple[Direction, Path]]:
    """Return example images with their directions; none if there are no files."""
    from fastunit.common.spread import spread
    from fastunit.data import builtin
    from fastunit.data.discovery import find_domains

    settings = translator.config
    if folder is not None:
        settings = configuration.from_dict({"data_root": folder})
    elif settings.data.builtin != "none":
        root = str(builtin.demo_root(builtin=settings.data.builtin))
        settings = configuration.from_dict({"data_root": root})
    try:
        found = find_domains(settings)
    except DataError:
        if folder is not None:
            raise
        return []
    return [
        (way, file)
        for way in _directions(translator)
        for file in spread(
            getattr(found, f"test_{way[0]}") or getattr(found, f"train_{way[0]}"), EXAMPLES
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
