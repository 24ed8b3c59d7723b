"""What Triton is asked to compile without a GPU, and what is read from its listing."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from bench.gpu import compile as machine
from fastunit.kernels.common import runtime
from fastunit.kernels.common.runtime import Launch
from fastunit.kernels.common.variants import specialise, variants

pytestmark = pytest.mark.skipif(runtime.INTERPRET, reason="the interpreter compiles nothing")


# ---- What Triton is asked to compile


@triton.jit
def _arguments_kernel(
    x_ptr, shifted_ptr, nothing, one, sixteen, odd, large, real, flag, BLOCK: tl.constexpr
):
    tl.store(x_ptr + tl.arange(0, BLOCK), sixteen)


def launch_of(sixteen=48, odd=7, num_warps=4, block=64):
    x = torch.zeros(64, dtype=torch.bfloat16)
    arguments = (x, torch.zeros(64)[1:], None, 1, sixteen, odd, 2**31 + 1, 0.5, True)
    return Launch(_arguments_kernel, (1,), arguments, {"BLOCK": block}, num_warps, 2)


def test_arguments_are_specialised_as_for_a_launch():
    variant = specialise(launch_of(), 90)
    assert variant.arguments == {
        "x_ptr": "*bf16%16",
        "shifted_ptr": "*fp32",
        "nothing": "None",
        "one": "1",
        "sixteen": "i32%16",
        "odd": "i32",
        "large": "i64",
        "real": "fp32",
        "flag": "u1",
        "BLOCK": "64",
    }
    assert (variant.name, variant.dtype) == ("_arguments_kernel", "bf16")
    assert (variant.options.num_warps, variant.options.num_stages) == (4, 2)


def test_launches_of_one_kind_are_one_variant():
    same = [launch_of(), launch_of(sixteen=16, odd=-3)]
    other = [launch_of(sixteen=8), launch_of(odd=1), launch_of(num_warps=8), launch_of(block=32)]
    found = variants([*same, *other], 90)
    assert list(found.values()) == [2, 1, 1, 1, 1]


def test_a_variant_is_compiled_without_a_gpu():
    binary = machine.compile_variant(specialise(launch_of(), 90))
    assert any(found.opcode.startswith("STG") for found in binary.code)
    assert 0 < binary.registers < 64
    assert (binary.stack, binary.shared, binary.loop) == (0, 0, None)


# ---- What is read from its listing
# A loop at 0x20 whose wait for a barrier lies behind the exit, and a loop without work.
SASS = """
    /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x00000a00ff017b82 */
                                                            /* 0x000fe20000000800 */
    /*0010*/              @!P0 BRA 0x80 ;                   /* 0x0000000000887947 */
    /*0020*/                   LDGSTS.E.BYPASS.128 [R3+0x400], desc[UR6][R4.64], P3 ;
    /*0030*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2 ;
    /*0040*/              @!P1 BRA 0xb0 ;
    /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
    /*0060*/               @P2 BRA 0x20 ;
    /*0070*/                   LDG.E.U16 R7, desc[UR6][R8.64] ;
    /*0080*/                   NANOSLEEP 0x10 ;
    /*0090*/               @P4 BRA 0x80 ;
    /*00a0*/                   EXIT ;
    /*00b0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R2 ;
    /*00c0*/              @!P1 BRA 0xb0 ;
    /*00d0*/                   BRA 0x50 ;
    /*00e0*/                   BRA 0xe0;
    /*00f0*/                   NOP;
"""


def test_instructions_are_read():
    code = machine.parse(SASS)
    assert [found.address for found in code] == list(range(0, 0x100, 0x10))
    assert (code[1].guard, code[1].opcode, code[1].target) == ("@!P0", "BRA", 0x80)
    assert (code[2].mnemonic, code[2].guard, code[2].target) == ("LDGSTS", "", None)
    # A branch without a guard and an exit end a block; what is guarded may fall through.
    assert [code[i].falls_through for i in (0, 1, 10, 13)] == [True, True, False, False]


def test_the_main_loop_includes_its_far_blocks():
    code = machine.parse(SASS)
    loop = [found.address for found in machine.main_loop(code)]
    assert loop == [0x20, 0x30, 0x40, 0x50, 0x60, 0xB0, 0xC0, 0xD0]


def test_without_tensor_cores_the_main_loop_is_the_one_that_loads():
    plain = SASS.replace("HGMMA", "FFMA")
    assert machine.main_loop(machine.parse(plain))[0].address == 0x20
    assert machine.main_loop(machine.parse(plain.replace("LDGSTS", "LDS"))) is None


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.U8.CONSTANT", 8),
        ("LDG.E.U16", 16),
        ("LDG.E.64.STRONG.SYS", 64),
        ("LDG.E.ENL2.256", 256),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDGSTS.E.LTC128B", 32),
        ("LDS.128", None),
        ("STG.E.128", None),
    ],
)
def test_widths_of_loads(opcode, bits):
    assert machine.Instruction(0, "", opcode, "R2, [R4]").load_bits == bits


@pytest.mark.parametrize(
    ("opcode", "is_tensor_core"),
    [
        ("HMMA.16816.F32.BF16", True),
        ("HGMMA.64x64x8.F32.TF32", True),
        ("UTCHMMA", True),
        ("UTCBAR", False),
        ("WARPGROUP.ARRIVE", False),
        ("FFMA", False),
    ],
)
def test_tensor_core_instructions(opcode, is_tensor_core):
    assert machine.Instruction(0, "", opcode, "").is_tensor_core == is_tensor_core
