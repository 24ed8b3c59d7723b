"""The entries of `kernels.cudnn.FASTER`, measured: ``python bench/dispatch.py REPORT.json``.

REPORT.json is what ``python -m pytest bench/bench_conv_gemm.py -k products --benchmark-json`` wrote
on the GPU: `bench_products` times, of every product that a training step makes, our kernel and
cuDNN in its place, with what each then needs besides. cuDNN is proposed where it is at least
`MARGIN` faster and the quartiles do not overlap, in every use of the product.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a file, bench.* is not found

from bench import report, tables
from bench.products import IMPLEMENTATIONS
from fastunit import cli
from fastunit.errors import DataError
from fastunit.kernels import cudnn

MARGIN = 0.03  # of cuDNN's time


class Times(NamedTuple):
    """Microseconds of one product; quartiles over the rounds."""

    median: float
    low: float
    high: float


class Use(NamedTuple):
    """One use of a layer, timed both ways."""

    name: str
    layer: cudnn.Layer
    ours: Times
    theirs: Times

    @property
    def ratio(self) -> float:
        """Our time over cuDNN's."""
        return self.ours.median / self.theirs.median

    def cudnn_is_faster(self, margin: float = MARGIN) -> bool:
        return self.ratio >= 1 + margin and self.theirs.high < self.ours.low


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/dispatch.py", description=__doc__)
    add = parser.add_argument
    add("reports", nargs="+", type=Path, metavar="REPORT.json")
    add("--margin", type=float, default=MARGIN, help="default %(default)s")
    add("-o", "--output", type=Path, metavar="FILE", help="Markdown; default: standard output")
    args = parser.parse_args(argv)
    run = report.merged(args.reports)
    text = "\n".join(page(uses(run["benchmarks"]), report.heading(run), args.margin)) + "\n"
    if args.output is None:
        print(text, end="")
    else:
        args.output.write_text(text, encoding="utf-8")
    return 0


def uses(results: Sequence[tables.Result]) -> list[Use]:
    """Return the products of a report that both implementations were timed on.

    Raises DataError where there is none.
    """
    found: dict[str, dict[str, tables.Result]] = {}
    for result in results:
        if tables.function(result) == "bench_products" and "layer" in result["extra_info"]:
            by = found.setdefault(result["extra_info"]["product"], {})
            by[result["params"]["implementation"]] = result
    pairs = {name: by for name, by in found.items() if by.keys() >= set(IMPLEMENTATIONS)}
    if not pairs:
        raise DataError(
            "the report times no product both ways; on a GPU run python -m pytest "
            "bench/bench_conv_gemm.py -k products --benchmark-json FILE"
        )
    return [
        Use(name, cudnn.Layer(**by["cudnn"]["extra_info"]["layer"]), *map(_times, _both(by)))
        for name, by in pairs.items()
    ]


def _both(by: Mapping[str, tables.Result]) -> Iterator[tables.Result]:
    return (by[name] for name in IMPLEMENTATIONS)


def _times(result: tables.Result) -> Times:
    """Return a product's times: a round of the stats has several."""
    stats, median = result["stats"], result["extra_info"]["median_us"]
    return Times(median, *(median * stats[key] / stats["median"] for key in ("q1", "q3")))


def faster(found: Iterable[Use], margin: float = MARGIN) -> list[cudnn.Layer]:
    """Return the layers for `cudnn.FASTER`: cuDNN is faster in each of their uses."""
    verdicts: dict[cudnn.Layer, bool] = {}
    for use in found:
        verdicts[use.layer] = verdicts.get(use.layer, True) and use.cudnn_is_faster(margin)
    return sorted(layer for layer, verdict in verdicts.items() if verdict)


def page(found: Sequence[Use], heading: Sequence[Any], margin: float = MARGIN) -> list[str]:
    """Return the lines of a Markdown page: what to paste into kernels/cudnn.py, and why."""
    chosen = faster(found, margin)
    entries = [f"        Layer{tuple(layer)!r},".replace("'", '"') for layer in chosen]
    literal = ["frozenset(", "    {", *entries, "    }", ")"] if entries else ["frozenset()"]
    lines = ["# cuDNN or our kernels", "", *tables.markdown(["", ""], heading), ""]
    lines += [f"At least {100 * margin:g} % faster, quartiles apart. For kernels/cudnn.py:", ""]
    lines += ["```python", f"FASTER: frozenset[Layer] = {literal[0]}", *literal[1:], "```", ""]
    rows = [
        [
            *(use.name, _cell(use.ours), _cell(use.theirs), f"{use.ratio:.2f}"),
            "cuDNN" if use.layer in chosen else "ours",
        ]
        for use in found
    ]
    header = ["product", "ours µs", "cuDNN µs", "ours / cuDNN", "choice"]
    return lines + tables.markdown(header, rows)


def _cell(times: Times) -> str:
    return f"{tables.number(times.median)} ({times.low:.1f} to {times.high:.1f})"


if __name__ == "__main__":
    sys.exit(cli.guard(main))
