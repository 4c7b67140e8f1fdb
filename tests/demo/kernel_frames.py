"""Backtraces through an arm64 kernel that has no debug information: `source kernel_frames.py` in gdb.

Kernel functions keep a frame record, the caller's X29 and X30, and point X29 at it. gdb by itself guesses from each
function's first instructions, and gives up where the kernel's tracing hooks stand in front of them. At the entry from
a program the backtrace goes on with the registers that the kernel has saved (struct user_pt_regs in
arch/arm64/include/uapi/asm/ptrace.h), so that the program's own functions follow.
"""

from __future__ import annotations

import re

import gdb
from gdb.unwinder import Unwinder, register_unwinder

# Addresses of the kernel; also what a return address has there once its authentication code is taken off.
KERNEL = 0xFFFF << 48
# The longest way to a frame record is that of the exception entries, which save all registers first.
LONGEST_PROLOGUE = 128


class FrameId:
    """Tells frames apart. gdb wants a caller's stack above its callee's, so the kernel's count from 0 here."""

    def __init__(self, sp: int, pc: int) -> None:
        self.sp, self.pc = gdb.Value(sp & 0xFFFFFFFF), gdb.Value(pc)


def number(value: gdb.Value) -> int:
    return int(value.format_string(format="x"), 16)


def read(address: int, length: int = 8) -> int:
    return int.from_bytes(bytes(gdb.selected_inferior().read_memory(address, length)), "little")


def symbol(pc: int) -> tuple[str, int] | None:
    """Name and start of the function that an address is in."""
    # "0xffff8000083a0e64 <vfs_write+4>"
    pointer = gdb.Value(pc).cast(gdb.lookup_type("char").const().pointer().pointer())
    match = re.search(r"<(.*?)(?:\+(\d+))?>$", pointer.format_string(symbols=True))
    return (match[1], pc - int(match[2] or 0)) if match else None


def record_offset(start: int, pc: int) -> int | None:
    """n of the ADD X29, SP, #n that a function has executed; None if it has not yet."""
    try:
        for at in range(start, min(pc, start + 4 * LONGEST_PROLOGUE), 4):
            instruction = read(at, 4)
            if instruction & 0xFFC003FF == 0x910003FD:
                return instruction >> 10 & 0xFFF
    except gdb.MemoryError:
        pass  # Code of the kernel's start, which it has freed.
    return None


class KernelFrames(Unwinder):
    def __init__(self) -> None:
        super().__init__("arm64-kernel-frame-records")

    def __call__(self, frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        pc, fp, sp = (number(frame.read_register(name)) for name in ("pc", "x29", "sp"))
        found = symbol(pc) if pc >= KERNEL else None
        if found is None or fp < KERNEL:
            return None
        name, start = found
        offset, link = record_offset(start, pc), frame.read_register("x30")
        if offset is None and not link.is_optimized_out:
            # Too early in the innermost function: the record is still the caller's.
            return self.info(frame, FrameId(sp, start), {"pc": number(link) | KERNEL, "x29": fp, "sp": sp})
        caller = {"pc": read(fp + 8), "x29": read(fp), "sp": fp + 16}
        if caller["pc"]:
            caller["pc"] |= KERNEL
        elif name.startswith("el0") and offset is not None:
            # A record of zeros is the last one. In an entry from EL0 it is a part of the saved registers.
            saved = fp - offset
            caller = {f"x{n}": read(saved + 8 * n) for n in range(31)}
            caller.update(sp=read(saved + 8 * 31), pc=read(saved + 8 * 32))
        else:
            caller["x30"] = 0
        return self.info(frame, FrameId(fp, start), caller)

    def info(self, frame: gdb.PendingFrame, frame_id: FrameId, registers: dict[str, int]) -> gdb.UnwindInfo:
        info = frame.create_unwind_info(frame_id)
        for name, value in registers.items():
            info.add_saved_register(name, gdb.Value(value).cast(frame.read_register(name).type))
        return info


register_unwinder(None, KernelFrames(), replace=True)
