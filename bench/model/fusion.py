"""How many kernels torch.compile makes of consecutive ATen kernels: an estimate by one rule.

Kernels that it may fuse and that follow each other without another kernel between them are a
run. In a run

- each reduction is a kernel that reads what it needs of the run's inputs, since it has to end
  before its result is used; reductions of the same tensor, one after the other, are one kernel;
- what later kernels read is written by kernels that read what they need of the inputs once more,
  and the results of reductions: one for all results that have an input in common.

Inductor orders kernels by what they need, not as they were called, so it may find longer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.model.aten import REDUCTIONS, Part, Work
from bench.model.trace import Event

_SMALL = 1 << 12  # bytes: later kernels read scalars too, but these are no passes of their own


def fused(events: Sequence[Event], may_fuse: Callable[[Event], bool]) -> list[Event]:
    """Return the events with every run replaced by the kernels it becomes."""
    found: list[Event] = []
    run: list[Event] = []
    for index, event in enumerate(events):
        if may_fuse(event):
            run.append(event)
            continue
        found += _Run(run).kernels(events[index:])
        run = []
        found.append(event)
    return found + _Run(run).kernels(())


class _Run:
    """Consecutive kernels, and who of them made what the others read."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self._makers: dict[int, int] = {}  # of a storage: the last kernel that wrote to it
        self._read: list[list[tuple[Part, int | None]]] = []
        for index, event in enumerate(events):
            self._read.append([(p, self._makers.get(p.storage)) for p in event.work.reads])
            self._makers |= {part.storage: index for part in event.work.writes}

    def kernels(self, later: Iterable[Event]) -> list[Event]:
        """Return the kernels of the run; `later` are those after it."""
        if len(self.events) < 2:
            return list(self.events)
        found = [
            Event(Work("fused reduction", self._inputs([i]), _sums(event)), event.place)
            for i, event in self._reductions()
        ]
        outputs = self._read_later(later)
        for parts in _joined([(part, self._inputs([i])) for part, i in outputs]):
            reads = {p.storage: p for _, inputs in parts for p in inputs}
            work = Work("fused", tuple(reads.values()), tuple(part for part, _ in parts))
            found.append(Event(work, self.events[-1].place))
        if not found:
            found = [self.events[-1]]
        return found if len(found) < len(self.events) else list(self.events)

    def _reductions(self) -> Iterator[tuple[int, Event]]:
        before: tuple[Part, ...] = ()
        for index, event in enumerate(self.events):
            if _reduces(event):
                if before != event.work.reads[:1]:
                    yield index, event
                before = event.work.reads[:1]

    def _inputs(self, wanted: list[int]) -> tuple[Part, ...]:
        """Return what kernels need of the run's inputs, and of results of reductions."""
        found: dict[int, Part] = {}
        waiting, seen = list(wanted), set(wanted)
        while waiting:
            for part, maker in self._read[waiting.pop()]:
                if maker is None or _is_sum(self.events[maker], part):
                    old = found.get(part.storage, part)
                    found[part.storage] = max(old, part, key=lambda p: p.bytes)
                elif maker not in seen:
                    seen.add(maker)
                    waiting.append(maker)
        return tuple(found.values())

    def _read_later(self, later: Iterable[Event]) -> list[tuple[Part, int]]:
        """Return what later kernels read before its memory is written anew, and its maker."""
        waiting, found = dict(self._makers), list[tuple[Part, int]]()
        for event in later:
            for part in event.work.reads:
                if part.storage in waiting:
                    found.append((part, waiting.pop(part.storage)))
            for part in event.work.writes:
                waiting.pop(part.storage, None)
            if not waiting:
                break
        return [(p, i) for p, i in found if p.bytes > _SMALL and not _is_sum(self.events[i], p)]


def _joined(
    outputs: Sequence[tuple[Part, tuple[Part, ...]]],
) -> list[list[tuple[Part, tuple[Part, ...]]]]:
    """Return the outputs in groups of those that have an input in common."""
    found: list[list[tuple[Part, tuple[Part, ...]]]] = []
    for part, inputs in outputs:
        storages = {p.storage for p in inputs}
        alike = [g for g in found if any(storages & {p.storage for p in ins} for _, ins in g)]
        found = [g for g in found if g not in alike]
        found.append([*(each for g in alike for each in g), (part, inputs)])
    return found


def _reduces(event: Event) -> bool:
    return event.work.name.rpartition(": ")[2] in REDUCTIONS


def _is_sum(event: Event, part: Part) -> bool:
    """Return whether a part is what a reduction ends in: a norm's result is not, its mean is."""
    largest = max((p.bytes for p in event.work.reads), default=0)
    return _reduces(event) and 2 * part.bytes < largest


def _sums(event: Event) -> tuple[Part, ...]:
    return tuple(part for part in event.work.writes if _is_sum(event, part))
