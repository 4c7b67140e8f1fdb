# scenario: guest=bare cpus=1 timeout=90
"""Registers hold what the guest set, and the guest finds what the debugger wrote: X, SP, PSTATE, V, FPCR, FPSR."""

from bare import *
from gdbcase import *

PATTERN = 0xA5A5 << 48
FRAME_NZCV, FRAME_FPCR, FRAME_FPSR, FRAME_V = 248, 256, 264, 304


def v(n: int) -> int:
    """All 128 bits of V<n>."""
    return int(gdb.parse_and_eval(f"$v{n}.d.u[0]")) | int(gdb.parse_and_eval(f"$v{n}.d.u[1]")) << 64


def set_v(n: int, value: int) -> None:
    gdb.execute(f"set $v{n}.d.u[0] = {value & (1 << 64) - 1:#x}", to_string=True)
    gdb.execute(f"set $v{n}.d.u[1] = {value >> 64:#x}", to_string=True)


def body() -> None:
    select("registers")
    run_to("regs_set")

    for n in range(31):
        equal(f"x{n}", reg(f"x{n}"), PATTERN | (n + 1))
    for n in range(32):
        equal(f"v{n}", v(n), (0x5A << 56 | (n + 1)) << 64 | PATTERN | (n + 1) << 8)
    equal("NZCV", reg("cpsr") >> 28 & 0xF, 0x9)
    equal("fpcr", reg("fpcr"), 0x01C00000)
    equal("fpsr", reg("fpsr"), 0x0800009F)
    # SP is that of the exception level the CPU is at, not SP_EL0, which the guest set to something else.
    stacks = (sym("stacks"), sym("stacks") + 2 * 16384)
    check(stacks[0] < reg("sp") <= stacks[1], f"sp {reg('sp'):#x} is not the guest's stack")

    # Other values in all of them, and SP where the guest shall store what it finds.
    frame = sym("regs_frame")
    for n in range(31):
        set_reg(f"x{n}", 0x1000 * n + 7)
    for n in range(32):
        set_v(n, n << 120 | 0xABC << 64 | n << 56 | 0x123)
    set_reg("cpsr", reg("cpsr") & ~(0xF << 28) | 0x6 << 28)
    set_reg("fpcr", 0x00800000)
    set_reg("fpsr", 0x00000011)
    set_reg("sp", frame)
    # Read back before and after the step.
    for _ in range(2):
        equal("sp", reg("sp"), frame)
        equal("x30", reg("x30"), 0x1000 * 30 + 7)
        equal("v31", v(31), 31 << 120 | 0xABC << 64 | 31 << 56 | 0x123)
        equal("fpcr", reg("fpcr"), 0x00800000)
        equal("fpsr", reg("fpsr"), 0x11)
        stepi()

    run_to("regs_stored")
    for n in range(31):
        equal(f"x{n} that the guest stored", u64(frame + 8 * n), 0x1000 * n + 7)
    equal("NZCV that the guest stored", u64(frame + FRAME_NZCV), 0x6 << 28)
    equal("FPCR that the guest stored", u64(frame + FRAME_FPCR), 0x00800000)
    equal("FPSR that the guest stored", u64(frame + FRAME_FPSR), 0x11)
    for n in range(32):
        stored = int.from_bytes(mem(frame + FRAME_V + 16 * n, 16), "little")
        equal(f"v{n} that the guest stored", stored, n << 120 | 0xABC << 64 | n << 56 | 0x123)
    finish()


run(body)
