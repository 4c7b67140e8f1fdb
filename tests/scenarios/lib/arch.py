"""What differs by architecture, in one place: registers, instructions, tests of the bare-metal guest, names of the kernel.

GUEST_ARCH in the environment says which it is, ABILITIES what the host can do for a debugger (all of it where that is not
given), PATIENCE how many times as long as elsewhere it may take there. Without gdb, since scripts that are no gdb scripts use it as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable

# PSTATE as gdb's cpsr shows it on arm64.
PSTATE_F = 1 << 6
PSTATE_I = 1 << 7
PSTATE_A = 1 << 8
PSTATE_D = 1 << 9
PSTATE_DAIF = PSTATE_D | PSTATE_A | PSTATE_I | PSTATE_F
PSTATE_MODE = 0xF
MODE_EL0T = 0x0
MODE_EL1H = 0x5

# EFLAGS.
EFLAGS_TF = 1 << 8
EFLAGS_IF = 1 << 9

# Tests that the bare-metal guest has on every machine (tests/guest/bare/machine.h); those of one machine follow.
COMMON_TESTS = "none registers ops both_cpus slots brks".split()


@dataclass(frozen=True)
class Arch:
    """One architecture."""

    # Of gdb's `set architecture`, and of lldb's `target create`.
    gdb: str
    lldb: str
    # Registers that hold a function's arguments, and all general ones with pc and flags.
    arguments: tuple[str, ...]
    general: tuple[str, ...]
    flags: str
    # What `Z0` and `Z1` call their kind, and the bytes that a software breakpoint plants, for printf.
    breakpoint_kind: int
    planted: str
    # Its name in a disassembly.
    breakpoint_name: str
    masked: Callable[[int], bool]
    # Takes a register reader.
    user: Callable[[Callable[[str], int]], bool]
    # Debug registers, for breakpoints and watchpoints together; 0 where each kind has its own, and the CPU says how many.
    slots: int
    # Ticks of the guest's timer for one of a scenario's.
    timer_scale: int
    tests: tuple[str, ...]
    # Where a function's result is, a vector register, and registers of the system.
    result: str
    vector: str
    system: tuple[str, ...]
    # Lengths that instructions have.
    lengths: range
    # An expression that has another value on each vCPU in the kernel; linux.cpu_mark says which.
    cpu_mark: str
    # A place in the kernel that getpid comes by, not at its first two instructions.
    behind_getpid: str
    # What names of the kernel's system calls begin with.
    system_call: str
    # How the kernel gets to one; frames that a call chain has.
    callers: tuple[str, ...]
    # What names of its interrupt entry begin with.
    interrupts: tuple[str, ...]


ARM64 = Arch(
    gdb="aarch64",
    lldb="aarch64",
    arguments=tuple(f"x{n}" for n in range(8)),
    general=(*(f"x{n}" for n in range(31)), "sp", "pc", "cpsr"),
    flags="cpsr",
    breakpoint_kind=4,
    planted=r"\140\373\054\324",
    breakpoint_name="brk",
    masked=lambda flags: flags & PSTATE_DAIF != 0,
    user=lambda read: read("cpsr") & PSTATE_MODE == MODE_EL0T,
    slots=0,
    timer_scale=1,
    tests=tuple(
        COMMON_TESTS
        + "step_daif step_svc step_eret step_el0 step_abort step_brk step_wfi step_exclusive step_plain".split()
    ),
    result="x0",
    vector="v0",
    system=("SCTLR_EL1", "TTBR1_EL1", "TCR_EL1", "VBAR_EL1", "TPIDR_EL1", "ELR_EL1"),
    lengths=range(4, 5),
    cpu_mark="($MPIDR_EL1 & 0xff)",
    behind_getpid="__arm64_sys_getpid+8",
    system_call="__arm64_sys_",
    callers=("invoke_syscall", "el0_svc"),
    interrupts=("el1h_64_irq", "el0_64_irq", "el1_interrupt", "el0_interrupt", "gic_handle_irq", "call_on_irq_stack"),
)

X86_64 = Arch(
    gdb="i386:x86-64",
    lldb="x86_64",
    arguments=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    general=(
        *"rax rbx rcx rdx rsi rdi rbp rsp".split(), *(f"r{n}" for n in range(8, 16)), "rip", "eflags",
    ),
    flags="eflags",
    breakpoint_kind=1,
    # An INT3 is one byte, which memory is full of.
    planted="",
    breakpoint_name="int3",
    masked=lambda flags: flags & EFLAGS_IF == 0,
    user=lambda read: read("cs") & 3 == 3,
    slots=4,
    # Below some 100 microseconds a guest of nested KVM comes from one interrupt into the next.
    timer_scale=500,
    tests=tuple(
        COMMON_TESTS
        + (
            "step_flags step_syscall step_int step_iret step_user step_fault step_int3 step_hlt step_mov_ss step_plain "
            "own_breakpoints"
        ).split()
    ),
    result="rax",
    vector="xmm0",
    system=("cr0", "cr2", "cr3", "cr4", "efer", "gs_base", "k_gs_base"),
    lengths=range(1, 16),
    cpu_mark="((unsigned long) $gs_base)",
    behind_getpid="__task_pid_nr_ns",
    system_call="__x64_sys_",
    callers=("do_syscall_64",),
    interrupts=("asm_sysvec_", "sysvec_", "asm_common_interrupt", "common_interrupt", "irq_entries_start"),
)

NAME = os.environ.get("GUEST_ARCH", "arm64")
ARCH = {"arm64": ARM64, "x86_64": X86_64}[NAME]

PATIENCE = int(os.environ.get("PATIENCE", "1"))

_ABILITIES = os.environ.get("ABILITIES")


def can(ability: str) -> bool:
    """Whether the host can do something; the names are those of `needs` in a scenario's first line."""
    return _ABILITIES is None or ability in _ABILITIES.split(",")


__all__ = [name for name in dir() if name.isupper() and not name.startswith("_")] + ["can"]
