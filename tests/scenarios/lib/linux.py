"""Steering the Linux guest: Debian's kernel, with tests/guest/agent.c as its init."""

from __future__ import annotations

from gdbcase import MODE_EL0T, PSTATE_MODE, Failure, Stop, equal, mem, reg, run_to, set_u64, sym, u64, where

# enum command of agent.c, in its order.
COMMANDS = "none ops traps syscalls calls lines hammer calm reboot spin dirty".split()

PAGE = 4096
# A kernel function that only the agent's commands reach, and one that nothing reaches.
SYSCALL = "__arm64_sys_getpid"
NEVER = "__arm64_sys_getppid"


def poll() -> Stop:
    """Stops in the agent's own context, at EL0: its addresses can be translated there."""
    return run_to("agent_poll")


def command(name: str, argument: int = 0) -> None:
    """Gives a command; the guest has to be stopped in the agent. It starts at the next poll."""
    set_u64("argument", argument)
    set_u64("command", COMMANDS.index(name))


def done(name: str) -> Stop:
    """Runs the agent to the end of a command."""
    stop = run_to("agent_done")
    equal("command that ended", reg("x0"), COMMANDS.index(name))
    return stop


def jiffies_address() -> int:
    """Address of the kernel's tick counter. Debian's kernel has symbols of functions only: the code that counts it tells."""
    pc = sym("do_timer")
    page: dict[int, int] = {}
    for n in range(12):
        insn = int.from_bytes(mem(pc + 4 * n, 4), "little")
        rd, rn, imm12 = insn & 31, insn >> 5 & 31, insn >> 10 & 0xFFF
        if insn & 0x9F000000 == 0x90000000:  # ADRP
            offset = (insn >> 5 & 0x7FFFF) << 2 | insn >> 29 & 3
            page[rd] = (pc + 4 * n & ~0xFFF) + ((offset ^ 1 << 20) - (1 << 20) << 12)
        elif insn & 0xFFC00000 == 0x91000000 and rn in page:  # ADD, immediate
            page[rd] = page[rn] + imm12
        elif insn & 0xFFC00000 == 0xF9400000 and rn in page:  # LDR, 64 bits
            return page[rn] + 8 * imm12
    raise Failure("do_timer does not load a global variable")


def jiffies() -> int:
    """The kernel's tick counter: it grows while the guest runs.

    With page table isolation a vCPU at EL0 has no kernel data mapped: it runs on to its next tick then.
    """
    if reg("cpsr") & PSTATE_MODE == MODE_EL0T:
        run_to("update_process_times")
    return u64(jiffies_address())


IRQ_CODE = ("el1h_64_irq", "el0_64_irq", "el1_interrupt", "el0_interrupt", "gic_handle_irq", "call_on_irq_stack")


def in_interrupt(pc: int) -> bool:
    """Whether pc is in the kernel's interrupt entry, the vectors' IRQ and FIQ slots included."""
    symbol = where(pc)
    if symbol.startswith("vectors"):
        offset = int(symbol.split("+")[1]) if "+" in symbol else 0
        return offset & 0x180 in (0x80, 0x100)
    return symbol.split(" ")[0].startswith(IRQ_CODE)


def call_chain(depth: int) -> list[str]:
    """Functions along the frame pointers: without debug information gdb's own backtrace guesses at the kernel's frames."""
    chain, frame = [where(reg("pc")), where(reg("x30"))], reg("x29")
    for _ in range(depth):
        chain.append(where(u64(frame + 8)))
        frame = u64(frame)
    return [name.split(" ")[0] for name in chain]
