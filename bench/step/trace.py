"""Spans of kernels or operators from a trace of torch.profiler, and the gaps between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories in the profiler's trace


class Span(NamedTuple):
    """A run of a kernel or an operator, in microseconds. `busy` is the self time."""

    name: str
    start: float
    end: float
    busy: float


class Gap(NamedTuple):
    """Idle microseconds between the end of one kernel and the start of the next."""

    idle: float
    before: str
    after: str


def spans_of(events: Iterable[Mapping[str, Any]], gpu: bool) -> list[Span]:
    """Return the kernels or operators of a trace, ordered by their start."""
    wanted = ON_GPU if gpu else ("cpu_op",)
    rows: dict[object, list[tuple[float, float, str]]] = defaultdict(list)
    for event in events:
        if event.get("cat") in wanted and event.get("ph") == "X":
            start, duration = float(event["ts"]), float(event["dur"])
            rows[event["tid"]].append((start, duration, event["name"]))
    found: list[Span] = []
    for row in rows.values():
        if gpu:
            found += [Span(name, start, start + took, took) for start, took, name in row]
        else:
            found += _own_times(row)
    return sorted(found, key=lambda span: span.start)


def _own_times(row: Sequence[tuple[float, float, str]]) -> list[Span]:
    """Return the operators of a thread with their self times; operators nest or are disjoint."""
    found: list[Span] = []
    around: list[int] = []  # indices in `found` of the operators that may enclose the next
    for start, duration, name in sorted(row, key=lambda item: (item[0], -item[1])):
        while around and found[around[-1]].end <= start:
            around.pop()
        if around:
            caller = found[around[-1]]
            found[around[-1]] = caller._replace(busy=caller.busy - duration)
        around.append(len(found))
        found.append(Span(name, start, start + duration, duration))
    return found


def gaps(spans: Sequence[Span]) -> list[Gap]:
    """Return the gaps in which nothing ran; `spans` are ordered by their start."""
    found, last = [], spans[0]
    for span in spans[1:]:
        if span.start > last.end:
            found.append(Gap(span.start - last.end, last.name, span.name))
        last = max(last, span, key=lambda span: span.end)
    return found
