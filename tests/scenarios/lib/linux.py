"""Steering the Linux guest: Debian's kernel, with tests/guest/agent.c as its init."""

from __future__ import annotations

from arch import ARCH, NAME, can
from gdbcase import Failure, Stop, argument, check, equal, gdb, in_user_mode, mem, reg, run_for, run_to, set_u64, sym, u64, where

# enum command of agent.c, in its order.
COMMANDS = "none ops traps syscalls calls lines hammer calm reboot spin dirty".split()

PAGE = 4096
# A kernel function that only the agent's commands reach, and one that nothing reaches.
SYSCALL = f"{ARCH.system_call}getpid"
NEVER = f"{ARCH.system_call}getppid"


def poll() -> Stop:
    """Stops in the agent's own context, in user mode: its addresses can be translated there.

    Without breakpoints, on a vCPU that idles and still has the agent's page tables: Linux leaves them where they are.
    """
    if can("hardware-breakpoint"):
        return run_to("agent_poll")
    for _ in range(20):
        stop = run_for(0.2)
        # The agent stays on its CPU.
        gdb.execute("thread 2", to_string=True)
        try:
            if u64("polls") > 0:
                return stop
        except gdb.MemoryError:
            pass
    raise Failure("vCPU 1 never has the agent's page tables")


def command(name: str, argument: int = 0) -> None:
    """Gives a command; the guest has to be stopped in the agent. It starts at the next poll."""
    set_u64("argument", argument)
    set_u64("command", COMMANDS.index(name))


def done(name: str) -> None:
    """Runs the agent to the end of a command."""
    if can("hardware-breakpoint"):
        run_to("agent_done")
        equal("command that ended", argument(0), COMMANDS.index(name))
        return
    for _ in range(50):
        poll()
        if u64("last_done") == COMMANDS.index(name):
            set_u64("last_done", 0)
            return
    raise Failure(f"the agent does not end {name}")


def counters() -> list[int]:
    """The calls that the agent has counted on each vCPU."""
    return [u64(sym("syscalls") + 8 * cpu) for cpu in range(2)]


def jiffies_address() -> int:
    """Address of the kernel's tick counter. Debian's kernel has symbols of functions only: the code that counts it tells."""
    pc = sym("do_timer")
    if NAME == "x86_64":
        code = mem(pc, 32)
        at = code.find(b"\x48\x01\x3d")  # ADD RDI to what RIP and 32 bits lead to
        check(at >= 0, "do_timer does not add to a global variable")
        return pc + at + 7 + int.from_bytes(code[at + 3 : at + 7], "little", signed=True)
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

    With page table isolation a vCPU in user mode has no kernel data mapped: it runs on to its next tick then.
    """
    try:
        return u64(jiffies_address())
    except gdb.MemoryError:
        run_to("update_process_times")
        return u64(jiffies_address())


def cpu_mark(cpu: int) -> int:
    """Value of ARCH.cpu_mark on a vCPU while that is in the kernel."""
    if NAME == "arm64":
        return cpu
    before = gdb.selected_thread()
    gdb.execute(f"thread {cpu + 1}", to_string=True)
    # SWAPGS exchanges the two at each way into the kernel and out of it; the kernel's is its per-CPU data.
    mark = max(reg("gs_base"), reg("k_gs_base"))
    before.switch()
    return mark


def in_interrupt(pc: int) -> bool:
    """Whether pc is in the kernel's interrupt entry, the vectors' IRQ and FIQ slots included."""
    symbol = where(pc)
    if symbol.startswith("vectors"):
        offset = int(symbol.split("+")[1]) if "+" in symbol else 0
        return offset & 0x180 in (0x80, 0x100)
    return symbol.split(" ")[0].startswith(ARCH.interrupts)


def call_chain(depth: int) -> list[str]:
    """Functions along the frame pointers: without debug information gdb's own backtrace guesses at the kernel's frames.

    On x86_64 the kernel has no frame pointers: a function that has just been entered, and its caller.
    """
    if NAME == "x86_64":
        chain = [where(reg("pc")), where(u64(reg("sp")))]
    else:
        chain, frame = [where(reg("pc")), where(reg("x30"))], reg("x29")
        for _ in range(depth):
            chain.append(where(u64(frame + 8)))
            frame = u64(frame)
    return [name.split(" ")[0] for name in chain]
