"""All checks and measurements on a GPU: ``python -m bench.gpu.prove [--call N | --stages ...]``.

Runs stages one after the other, each within its time limit, continues after a failure, and prints
a table last. Results and one log, prove.log, go to --out or $OUT. `CALLS` has the stages that fit
into calls of ten minutes each; docs/gpu-notes.md says how to use them. The exit code is 1 if a
stage has failed. Stages that cannot run here are "left out", with the reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.gpu import checks, measure
from bench.gpu.workspace import FAILED, Outcome, Workspace
from bench.report import tables
from fastunit.common import cli
from fastunit.common.errors import UserError

LIMIT = 540  # seconds for all stages: fits into a call of ten minutes


class Stage(NamedTuple):
    """A check, and its time limit in seconds."""

    check: Callable[[Workspace], Outcome]
    seconds: int


STAGES = {
    "tests": Stage(checks.tests, 280),
    "sanitize": Stage(checks.sanitize, 150),
    "quick": Stage(lambda workspace: checks.report(workspace, "--quick"), 110),
    "report": Stage(checks.report, 400),
    "profile": Stage(checks.profile, 60),
    "tiles": Stage(checks.tiles, 60),
    "train": Stage(checks.train, 500),
}
CALLS = {1: ("tests", "sanitize", "quick"), 2: ("profile", "report", "tiles"), 3: ("train",)}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError(
            "bench.gpu.prove needs an NVIDIA GPU that PyTorch can use; without one run "
            "python -m pytest"
        )
    out = measure.folder_of(args.out)
    out.mkdir(parents=True, exist_ok=True)
    names = args.stages or (CALLS[args.call] if args.call else tuple(STAGES))
    found = run(names, args.limit, out, args.data or [])
    text = "\n".join([f"# {torch.cuda.get_device_name()}", "", *table(found), ""])
    (out / "prove.md").write_text(text, encoding="utf-8")
    print(f"\n{text}", flush=True)
    return 1 if any(outcome.what == FAILED for _, outcome in found.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.prove", description=__doc__)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--call", type=int, choices=CALLS, help="the stages of one call")
    which.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        metavar="STAGE",
        help=f"in the order given, of {', '.join(STAGES)}; default: all",
    )
    add("--limit", type=float, default=LIMIT, metavar="SECONDS", help="default %(default)s")
    add("--out", type=Path, metavar="DIR", help="default: $OUT, else bench/results")
    add(
        "--data",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders with trainA and trainB for the stage train",
    )
    return parser


def run(
    names: Sequence[str], limit: float, out: Path, data: Sequence[Path]
) -> dict[str, tuple[float, Outcome]]:
    """Run stages within `limit` seconds; return each one's seconds and outcome.

    A single stage gets all the time.
    """
    end, found = time.monotonic() + limit, {}
    for name in names:
        begin = time.monotonic()
        # After its limit a stage gets the grace period twice: after SIGINT, and before SIGKILL.
        seconds = end - begin - 2 * measure.GRACE
        if len(names) > 1:
            seconds = min(STAGES[name].seconds, seconds)
        if seconds < measure.LEAST:
            outcome = Outcome.left_out(f"the {limit:.0f} s are spent")
        else:
            print(f"\n{name}: at most {seconds:.0f} s", flush=True)
            outcome = STAGES[name].check(Workspace(out, seconds, tuple(data)))
        found[name] = time.monotonic() - begin, outcome
        print(f"{name}: {outcome}", flush=True)
    return found


def table(found: dict[str, tuple[float, Outcome]]) -> list[str]:
    """Return the lines of a Markdown table of what `run` returned."""
    rows = [[name, f"{seconds:.0f}", str(outcome)] for name, (seconds, outcome) in found.items()]
    return tables.markdown(["stage", "seconds", "outcome"], rows)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
