"""Analysis of the machine code of recorded launches. Needs no GPU.

Triton includes ptxas and cuobjdump for every architecture, so this is the code that such a GPU
would run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass

import triton

from fastunit.kernels.common.variants import Variant

TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}  # architecture -> its instruction
LOADS = ("LDG", "LDGSTS")  # from global memory to registers, to shared memory
LOCAL = ("LDL", "STL")  # accesses of local memory: register spills and indexed local arrays

_INSTRUCTION = re.compile(
    r"/\*(?P<address>[0-9a-f]+)\*/\s+(?P<guard>@\S+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One line of SASS: ``@!P0 BRA 0x1570`` at its address."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def mnemonic(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_tensor_core(self) -> bool:
        return re.fullmatch(r"HMMA|HGMMA|UTC[A-Z]*MMA", self.mnemonic) is not None

    @property
    def load_bits(self) -> int | None:
        """How wide a load from global memory is, per thread; None for other instructions."""
        if self.mnemonic not in LOADS:
            return None
        widths = [re.fullmatch(r"[US]?(8|16|64|128|256)", part) for part in self.opcode.split(".")]
        return next((int(width[1]) for width in widths if width), 32)

    @property
    def target(self) -> int | None:
        """The address a branch goes to, where it does."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands) if self.mnemonic == "BRA" else None
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may be executed next; branches may have predicates."""
        if self.guard:
            return True
        always = self.mnemonic == "BRA" and self.operands.startswith("0x")
        return not always and self.mnemonic not in ("EXIT", "RET")


Code = tuple[Instruction, ...]


@dataclass(frozen=True)
class MachineCode:
    """A compiled variant. Registers and stack bytes are per thread, shared bytes per program."""

    registers: int
    stack: int
    shared: int
    code: Code
    loop: Code | None  # the body of the main loop, if there is one


def compile_variant(variant: Variant) -> MachineCode:
    """Compile for the variant's architecture; Triton keeps the result in its cache folder."""
    binary = variant.compile()
    report = _cuobjdump(binary.asm["cubin"], "-res-usage", "-sass")
    registers, stack = map(int, _RESOURCES.search(report).groups())
    code = parse(report)
    return MachineCode(registers, stack, binary.metadata.shared, code, main_loop(code))


def resources(cubin: bytes) -> tuple[int, int]:
    """Return the registers and stack bytes of a thread of a compiled kernel."""
    registers, stack = _RESOURCES.search(_cuobjdump(cubin, "-res-usage")).groups()
    return int(registers), int(stack)


def _cuobjdump(cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(sass: str) -> Code:
    """Return the instructions in cuobjdump's listing of one kernel."""
    return tuple(
        Instruction(
            int(line["address"], 16),
            (line["guard"] or "").strip(),
            line["opcode"],
            line["operands"].strip(),
        )
        for line in _INSTRUCTION.finditer(sass)
    )


def main_loop(code: Code) -> Code | None:
    """Return the innermost loop with the most tensor-core instructions.

    For a kernel without such instructions, the innermost loop with the most loads; None if no
    loop contains either.
    """

    def works(instruction: Instruction) -> bool:
        return instruction.is_tensor_core if tensor else instruction.load_bits is not None

    tensor = any(instruction.is_tensor_core for instruction in code)
    bodies = [body for body in loops(code) if any(works(code[index]) for index in body)]
    innermost = [body for body in bodies if not any(other < body for other in bodies)]
    if not innermost:
        return None
    busiest = max(innermost, key=lambda body: sum(works(code[index]) for index in body))
    return tuple(code[index] for index in sorted(busiest))


def loops(code: Code) -> list[set[int]]:
    """Return the natural loops, each as the positions of its instructions.

    ptxas moves rarely taken blocks, such as waits, behind the kernel's end. They belong to the loop
    that they were moved from; their jumps back into the kernel are not loops.
    """
    position = {instruction.address: index for index, instruction in enumerate(code)}
    before = _predecessors(code, position)
    bodies: dict[int, set[int]] = {}
    for tail, instruction in enumerate(code):
        head = position.get(instruction.target)
        if head is None or head > tail:
            continue
        body, todo = {head}, [tail]
        while todo:
            index = todo.pop()
            if index not in body:
                body.add(index)
                todo += before[index]
        if head == 0 or 0 not in body:  # otherwise the tail can be reached without the head
            bodies.setdefault(head, set()).update(body)
    return list(bodies.values())


def _predecessors(code: Code, position: dict[int, int]) -> list[list[int]]:
    before: list[list[int]] = [[] for _ in code]
    for index, instruction in enumerate(code):
        if instruction.falls_through and index + 1 < len(code):
            before[index + 1].append(index)
        if (target := position.get(instruction.target)) is not None:
            before[target].append(index)
    return before
