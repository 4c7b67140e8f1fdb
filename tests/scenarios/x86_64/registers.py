# scenario: guest=bare cpus=1 timeout=120 needs=single-step,test:registers
"""Registers hold what the guest set, and the guest finds what the debugger wrote: general, flags, bases, XMM and MXCSR."""

from bare import *
from gdbcase import *

PATTERN = 0xA5A5 << 48
# In the order in which regs.S stores them; their patterns count in the order of their numbers, RSP's left out.
STORED = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
VALUES = dict(zip(STORED, (PATTERN | n for n in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16))))
FRAME_FLAGS, FRAME_MXCSR, FRAME_XMM, FRAME_BASES = 120, 128, 144, 400
BASES = {"fs_base": 0x0000112233445566, "gs_base": 0x0000556611223344, "k_gs_base": 0xFFFF887766554433}
# What POPF has written, and what it may hold beside.
STATUS = 0x8D5


def xmm(n: int) -> int:
    """All 128 bits of XMM<n>."""
    return int(gdb.parse_and_eval(f"$xmm{n}.v2_int64[0]")) & (1 << 64) - 1 | (
        int(gdb.parse_and_eval(f"$xmm{n}.v2_int64[1]")) & (1 << 64) - 1
    ) << 64


def set_xmm(n: int, value: int) -> None:
    gdb.execute(f"set $xmm{n}.v2_int64[0] = {value & (1 << 64) - 1:#x}", to_string=True)
    gdb.execute(f"set $xmm{n}.v2_int64[1] = {value >> 64:#x}", to_string=True)


def body() -> None:
    select("registers", timer_period=0)
    run_to("regs_set")
    for name, value in VALUES.items():
        equal(name, reg(name), value)
    for name, value in BASES.items():
        equal(name, reg(name), value)
    for n in range(16):
        equal(f"xmm{n}", xmm(n), (0x5A << 56 | (n + 1)) << 64 | PATTERN | (n + 1) << 8)
    equal("status flags", reg("eflags") & STATUS, STATUS)
    equal("mxcsr", reg("mxcsr"), 0x1FA0)
    equal("rsp", reg("rsp"), sym("regs_frame"))

    # Other values in all of them, and RSP where the guest shall store what it finds.
    frame = sym("regs_frame") + 512
    for n, name in enumerate(STORED):
        set_reg(name, 0x1000 * n + 7)
    for n in range(16):
        set_xmm(n, n << 120 | 0xABC << 64 | n << 56 | 0x123)
    for n, name in enumerate(BASES):
        set_reg(name, 0x55AA0000 + n)
    set_reg("eflags", reg("eflags") & ~STATUS | 0x41)
    set_reg("mxcsr", 0x1F80)
    set_reg("rsp", frame)
    # Read back before and after the step.
    for _ in range(2):
        equal("rsp", reg("rsp"), frame)
        equal("r15", reg("r15"), 0x1000 * 14 + 7)
        equal("xmm15", xmm(15), 15 << 120 | 0xABC << 64 | 15 << 56 | 0x123)
        equal("gs_base", reg("gs_base"), 0x55AA0001)
        equal("status flags", reg("eflags") & STATUS, 0x41)
        equal("mxcsr", reg("mxcsr"), 0x1F80)
        stepi()

    run_to("regs_stored")
    for n, name in enumerate(STORED):
        equal(f"{name} that the guest stored", u64(frame + 8 * n), 0x1000 * n + 7)
    equal("status flags that the guest stored", u64(frame + FRAME_FLAGS) & STATUS, 0x41)
    equal("TF that the guest stored", u64(frame + FRAME_FLAGS) & EFLAGS_TF, 0)
    equal("mxcsr that the guest stored", u64(frame + FRAME_MXCSR) & 0xFFFFFFFF, 0x1F80)
    for n in range(16):
        stored = int.from_bytes(mem(frame + FRAME_XMM + 16 * n, 16), "little")
        equal(f"xmm{n} that the guest stored", stored, n << 120 | 0xABC << 64 | n << 56 | 0x123)
    for n, name in enumerate(BASES):
        equal(f"{name} that the guest stored", u64(frame + FRAME_BASES + 8 * n), 0x55AA0000 + n)
    finish()


run(body)
