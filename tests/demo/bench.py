"""The benchmark's part with a real gdb. The runner asks for one measurement after the other, of two servers in turns.

Runs inside gdb, with what gdbcase.py wants in its environment. BENCH_SOCKET is a unix socket: each line that comes is the name of
one of the tasks below and an amount, and each is answered with a line, the seconds it took. While nothing is asked the guest is
stopped.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Callable

from gdbcase import *
from linux import *
from rules import evaluates

MIB = 1 << 20
# In the kernel, where interrupts may come.
KERNEL_FUNCTION = "__arm64_sys_clock_nanosleep"
# In the timer's interrupt.
MASKED_FUNCTION = "update_process_times"
# Eight bytes that no code has, for a search that goes to its end.
NOWHERE = 0xF00D_FACE_CAFE_BEEF


def timed(commands: list[str], times: int = 1) -> float:
    """Seconds for all of them."""
    started = time.monotonic()
    for _ in range(times):
        for command in commands:
            gdb.execute(command, to_string=True)
    return time.monotonic() - started


def into_kernel() -> None:
    """To the start of a function that the agent calls before it sleeps."""
    poll()
    run_to(KERNEL_FUNCTION)


def text(mib: int) -> tuple[int, int]:
    start = sym("_stext")
    return start, start + mib * MIB


def round_trip(times: int) -> float:
    return timed(["maintenance packet qC"], times)


def steps(times: int) -> float:
    into_kernel()
    return timed(["stepi"], times)


def steps_with_kept_memory(times: int) -> float:
    """The same by a gdb that keeps what it has read while the guest is stopped."""
    gdb.execute("mem 0 0 rw cache")
    seconds = steps(times)
    gdb.execute("mem auto")
    return seconds


def steps_through_the_relay(times: int) -> float:
    """The same through guest-debug-relay."""
    detach()
    gdb.execute(f"target remote | {os.environ['BENCH_RELAY']} {os.environ['GDB_TARGET']}", to_string=True)
    seconds = steps(times)
    detach()
    connect()
    return seconds


def step_packets(times: int) -> float:
    """Steps without anything that gdb asks around them: a packet, and its stop reply."""
    into_kernel()
    seconds = timed([f"maintenance packet vCont;s:p1.{gdb.selected_thread().num:x}"], times)
    # gdb has not noticed.
    gdb.execute("maintenance flush register-cache", to_string=True)
    gdb.execute("maintenance flush dcache", to_string=True)
    check(reg("pc") != sym(KERNEL_FUNCTION), "nothing was stepped")
    return seconds


def onward(times: int) -> float:
    """Continues to a breakpoint on the next instruction, again and again from the same place. Interrupts are masked there: the
    guest has nothing else to do first."""
    run_to(MASKED_FUNCTION)
    pc = sym(MASKED_FUNCTION)
    return timed([f"set $pc = {pc:#x}", f"thbreak *{pc + 4:#x}", "continue"], times)


def next_to_the_end(times: int) -> float:
    """A function of which gdb has no lines, so that it goes through all of it; over its calls by breakpoints. Interrupts are masked there."""
    seconds = 0.0
    for _ in range(times):
        run_to(MASKED_FUNCTION)
        seconds += timed(["next"])
        check(where(reg("pc")).split(" ")[0] != MASKED_FUNCTION, "next ended in the function")
    return seconds


def dump(mib: int) -> float:
    into_kernel()
    start, end = text(mib)
    name = f"{os.environ['BENCH_SOCKET']}.dump"
    seconds = timed([f"dump binary memory {name} {start:#x} {end:#x}"])
    equal("bytes in the dump", os.stat(name).st_size, end - start)
    os.unlink(name)
    return seconds


def find(mib: int) -> float:
    into_kernel()
    start, end = text(mib)
    return timed([f"find /g {start:#x}, {end:#x}, (unsigned long){NOWHERE:#x}"])


def conditions(hits: int) -> float:
    """So many calls of a kernel function, on both vCPUs, with a breakpoint there whose condition is never true. Where the server
    evaluates none, gdb does."""
    try:
        evaluates()
    except Skip:
        return conditions_of_gdb(hits)
    gdb.execute("set breakpoint condition-evaluation target")
    poll()
    command("syscalls", hits // 2)
    # The poll that sees the command.
    poll()
    breakpoint = hbreak(SYSCALL)
    breakpoint.condition = "$x0 == 1"
    end = hbreak("agent_done")
    started = time.monotonic()
    stop = cont()
    seconds = time.monotonic() - started
    check(stop.at(end), f"a stop that was not asked for: {stop}")
    equal("calls that the guest counted", sum(counters()), hits // 2 * 2)
    breakpoint.delete()
    end.delete()
    return seconds


class Evaluated(gdb.Breakpoint):
    """A breakpoint that gdb decides about, until it has done so often enough. Which calls of the function those were is another
    question: a server that steps into an interrupt comes by the same call again."""

    def __init__(self, location: str, times: int) -> None:
        super().__init__(f"*{sym(location):#x}", gdb.BP_HARDWARE_BREAKPOINT)
        self.left = times

    def stop(self) -> bool:
        self.left -= 1
        return self.left <= 0 or reg("x0") == 1


def conditions_of_gdb(hits: int) -> float:
    """The same with a condition that gdb evaluates, so many times."""
    poll()
    command("hammer")
    done("hammer")
    breakpoint = Evaluated(SYSCALL, hits)
    started = time.monotonic()
    stop = cont()
    seconds = time.monotonic() - started
    check(stop.at(breakpoint), f"a stop that was not asked for: {stop}")
    breakpoint.delete()
    poll()
    command("calm")
    done("calm")
    return seconds


def run_on(seconds: int) -> float:
    """The guest runs, with gdb waiting for it."""
    poll()
    started = time.monotonic()
    run_for(float(seconds))
    return time.monotonic() - started


TASKS: dict[str, Callable[[int], float]] = {
    "round-trip": round_trip,
    "stepi": steps,
    "stepi-relay": steps_through_the_relay,
    "stepi-kept": steps_with_kept_memory,
    "step-packet": step_packets,
    "onward": onward,
    "next": next_to_the_end,
    "dump": dump,
    "find": find,
    "conditions": conditions,
    "conditions-gdb": conditions_of_gdb,
    "run": run_on,
}


def body() -> None:
    runner = socket.socket(socket.AF_UNIX)
    runner.connect(os.environ["BENCH_SOCKET"])
    with runner, runner.makefile("rw", encoding="utf-8") as lines:
        while line := lines.readline():
            name, amount = line.split()
            lines.write(f"{TASKS[name](int(amount))}\n")
            lines.flush()


run(body)
