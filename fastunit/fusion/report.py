"""What has become of a network's convolutions and norms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """One operation: where it is in the network, what it does, and why it was left, or ""."""

    where: str
    what: str
    why: str = ""

    def __str__(self) -> str:
        reason = f": {self.why}" if self.why else ""
        return f"{self.where or '(no module)'}: {self.what}{reason}"


@dataclass
class Report:
    """The graphs that were compiled: each chain that was fused, and what was left and why.

    A network has several graphs where dynamo makes several: for training and evaluation, and
    around what it cannot trace. Printed, what several graphs have in common is there once.
    """

    fused: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    graphs: int = 0
    runs: int = 0  # of graphs in which something was fused

    def __str__(self) -> str:
        fused, left = dict.fromkeys(self.fused), dict.fromkeys(self.left)
        parts = [f"{len(fused)} fused, {len(left)} left, {self.graphs} graphs"]
        for title, entries in (("fused", fused), ("left", left)):
            parts += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return "\n".join(parts)
