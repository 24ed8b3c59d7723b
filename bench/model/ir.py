"""What a program of a Triton kernel loads, stores and multiplies, read from its Triton IR.

The numbers are upper bounds: masked elements count as moved. Trip counts of loops are those of the
first program (program id 0) for the launch's arguments; a loop whose bounds cannot be known
beforehand, as they are loaded, counts once. A branch is taken if its condition is a function of the
launch's arguments that holds; one that asks whether a counter in memory has reached n, by the last
of n + 1 programs; any other by all programs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_ASSIGN = re.compile(r'^(?:(%[\w$]+)(?::\d+)? = )?"?([a-z_]+\.[a-z_.]+)"? ?(.*)$')
_VALUE = re.compile(r"%[\w$]+(?:#\d+)?")
_LOCATION = re.compile(r' loc\((?:#loc\d*|"[^"]*"(?:\([^)]*\))*(?:\)*)|[^()]*(?:\([^()]*\))*)\)')
_SHAPE = re.compile(r"tensor<((?:\d+x)*)(!tt\.ptr<[a-z]+\d+\w*>|[a-z]+\d+\w*)")
_POINTER = re.compile(r"!tt\.ptr<([a-z]+)(\d+)")
_LOOP = re.compile(r"(%\S+) = (%\S+) to (%\S+) step (%\S+)")
_ITER = re.compile(r"(%[\w$]+) = (%[\w$]+(?:#\d+)?)")
_PROGRAM = "program id"  # of which numbers are known, if it is
_FLOW = ("addptr", "splat", "broadcast", "expand_dims", "bitcast", "reshape", "trans",
    "make_tensor_descriptor", "convert_layout", "make_tensor_ptr", "advance")  # fmt: skip


def _truncated(a: int, b: int) -> int:
    """Return a / b rounded towards 0, 0 for b = 0."""
    quotient = abs(a) // abs(b) if b else 0
    return quotient if (a < 0) == (b < 0) else -quotient


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divsi": lambda a, b: _truncated(a, b),
    "divui": lambda a, b: a // b if b else 0,
    "ceildivsi": lambda a, b: -(-a // b) if b else 0,
    "floordivsi": lambda a, b: a // b if b else 0,
    "remsi": lambda a, b: a - b * _truncated(a, b),
    "remui": lambda a, b: a % b if b else 0,
    "minsi": min,
    "minui": min,
    "maxsi": max,
    "maxui": max,
    "andi": lambda a, b: a & b,
    "ori": lambda a, b: a | b,
    "shli": lambda a, b: a << b,
    "shrsi": lambda a, b: a >> b,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
}


class Loop(NamedTuple):
    first: str
    last: str
    step: str


class Branch(NamedTuple):
    condition: str
    holds: bool  # else the branch of the condition that does not


Blocks = tuple[Loop | Branch, ...]


class Access(NamedTuple):
    """A load, a store, or a product, and the loops and branches around it.

    `argument` is the pointer's argument by name, None where it cannot be told (a pointer that was
    loaded). `amount` is bytes, or FLOPs of a "dot", whose `area` is the accumulators'.
    """

    kind: str
    argument: str | None
    amount: int
    blocks: Blocks
    area: int = 0


@dataclass
class Counts:
    """What all programs of a launch do together."""

    loaded: Counter[str | None] = field(default_factory=Counter)
    stored: Counter[str | None] = field(default_factory=Counter)
    flops: int = 0
    area: int = 0  # accumulators of a program


class Kernel:
    """The accesses in the Triton IR of a kernel."""

    def __init__(self, text: str) -> None:
        self.accesses: list[Access] = []
        self._definitions: dict[str, tuple[str, str]] = {}
        self._roots: dict[str, str] = {}
        blocks: list[Loop | Branch | None] = []
        for raw in text.splitlines():
            line = _LOCATION.sub("", raw).strip()
            if line.startswith("#"):
                continue
            closed = blocks.pop() if line.startswith("}") and blocks else None
            if line.startswith("tt.func"):
                self._signature(line)
                blocks.append(None)
            elif found := _ASSIGN.match(line):
                self._operation(line, *found.groups(), tuple(b for b in blocks if b))
                if line.endswith("{"):
                    blocks.append(_block(found[2], line))
            elif line.endswith("{"):
                blocks.append(closed._replace(holds=False) if isinstance(closed, Branch) else None)

    def count(self, scalars: Mapping[str, object], grid: Sequence[int]) -> Counts:
        """Return what a launch with these scalar arguments and this grid does."""
        uniform: dict[str, int | None] = {
            f"%{name}": int(value) for name, value in scalars.items() if isinstance(value, int)
        }
        known = uniform | {_PROGRAM: 0}
        found = Counts()
        for access in self.accesses:
            times = math.prod(grid)
            for block in access.blocks:
                if isinstance(block, Loop):
                    times *= self._trips(block, known, grid)
                else:
                    times = self._taken(block, times, uniform, grid)
            if access.kind == "dot":
                found.flops += times * access.amount
                found.area = max(found.area, access.area)
            else:
                moved = found.loaded if access.kind == "load" else found.stored
                moved[access.argument] += times * access.amount
        return found

    def _trips(self, loop: Loop, known: dict[str, int | None], grid: Sequence[int]) -> int:
        first, last, step = (self._value(name, known, grid) for name in loop)
        if first is None or last is None or not step:
            return 1
        return max(0, -(-(last - first) // step))

    def _taken(
        self, branch: Branch, times: int, uniform: dict[str, int | None], grid: Sequence[int]
    ) -> int:
        """Return how many of `times` visits take a branch."""
        condition = self._value(branch.condition, uniform, grid)
        if condition is not None:
            return times if bool(condition) == branch.holds else 0
        op, rest = self._definitions.get(branch.condition, ("", ""))
        compared = _VALUE.findall(rest) if rest.startswith("eq") else []
        counters = [v for v in compared if self._definitions.get(v, ("",))[0] == "tt.atomic_rmw"]
        limits = [self._value(v, uniform, grid) for v in compared if v not in counters]
        if op != "arith.cmpi" or len(counters) != 1 or limits[0] is None or not branch.holds:
            return times
        return -(-times // (limits[0] + 1))

    def _signature(self, line: str) -> None:
        for name in re.findall(r"%([\w$]+): !tt\.ptr", line):
            self._roots[f"%{name}"] = name
        for name in re.findall(r"%([\w$]+): !tt\.tensordesc", line):
            self._roots[f"%{name}"] = name

    def _operation(self, line: str, result: str | None, op: str, rest: str, blocks: Blocks) -> None:
        operands = _VALUE.findall(rest)
        root = next((self._roots[v] for v in operands if v in self._roots), None)
        short = op.rpartition(".")[2]
        if op == "scf.for":
            inits = _ITER.findall(rest.partition("iter_args")[2])
            for index, (inner, init) in enumerate(inits):
                if init in self._roots:
                    for name in (inner, f"{result}#{index}", result or ""):
                        self._roots.setdefault(name, self._roots[init])
        elif short in _FLOW or (short == "select" and "!tt.ptr" in rest):
            if result and root and ("!tt." in rest):
                self._roots[result] = root
        elif result and op.startswith(("arith.", "tt.get_", "tt.atomic")):
            self._definitions[result] = (op, rest)
        if op == "tt.dot":
            (m, k), _, (_, n) = (_shape(t)[:2] for t in _types(rest)[:3])
            self.accesses.append(Access("dot", None, 2 * m * k * n, blocks, m * n))
        elif op.startswith("tt.atomic"):
            amount = _moved(rest)
            self.accesses += [Access(kind, root, amount, blocks) for kind in ("load", "store")]
        elif op.startswith("tt.") and (kind := _kind(short)):
            self.accesses.append(Access(kind, root, _moved(rest), blocks))

    def _value(self, name: str, known: dict[str, int | None], grid: Sequence[int]) -> int | None:
        if name not in known:
            known[name] = None  # while it is worked out
            known[name] = self._worked_out(name, known, grid)
        return known[name]

    def _worked_out(
        self, name: str, known: dict[str, int | None], grid: Sequence[int]
    ) -> int | None:
        op, rest = self._definitions.get(name, ("", ""))
        short = op.rpartition(".")[2]
        if op == "tt.get_program_id":
            return known.get(_PROGRAM)
        if op == "tt.get_num_programs":
            axis = "xyz".index(rest[0])
            return grid[axis] if axis < len(grid) else 1
        if op == "arith.constant":
            found = re.match(r"(-?\d+) :", rest)
            return int(found[1]) if found else {"true": 1, "false": 0}.get(rest.strip())
        values = [self._value(v, known, grid) for v in _VALUE.findall(rest)]
        if op == "arith.select" and len(values) == 3 and values[0] is not None:
            return values[1] if values[0] else values[2]
        numbers = [v for v in values if v is not None]
        if not values or len(numbers) != len(values):
            return None
        if short in ("extsi", "extui", "trunci", "index_cast"):
            return numbers[0]
        if short == "cmpi":
            compare = _COMPARISONS.get(rest.split(",")[0].strip())
            return None if compare is None else int(compare(*numbers))
        return _OPERATIONS[short](*numbers) if short in _OPERATIONS else None


def _block(operation: str, line: str) -> Loop | Branch | None:
    """Return the loop or the branch that a line begins."""
    if operation == "scf.for" and (bounds := _LOOP.search(line)):
        return Loop(bounds[2], bounds[3], bounds[4])
    if operation == "scf.if" and (condition := _VALUE.search(line.partition("scf.if")[2])):
        return Branch(condition[0], True)
    return None


def _kind(operation: str) -> str | None:
    """Return "load" or "store" for `load`, `descriptor_load`, `descriptor_scatter` and so on."""
    words = set(operation.split("_"))
    if words & {"store", "scatter"}:
        return "store"
    return "load" if words & {"load", "gather"} else None


def _types(rest: str) -> list[str]:
    return re.findall(r"tensor<[^>]*>", rest.partition(" : ")[2])


def _shape(kind: str) -> list[int]:
    return [int(n) for n in re.findall(r"(\d+)x", kind)]


def _moved(rest: str) -> int:
    """Return the bytes of one load or store, from the types at its line's end."""
    kinds = rest.rpartition(" : ")[2]
    shape = _SHAPE.search(kinds)
    element = _POINTER.search(kinds) or re.search(r"([a-z]+)(\d+)", shape[2] if shape else kinds)
    count = math.prod(map(int, re.findall(r"\d+", shape[1]))) if shape else 1
    return count * max(1, int(element[2]) // 8) if element else 0
