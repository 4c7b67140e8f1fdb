# scenario: guest=linux cpus=2 timeout=60 needs=hardware-breakpoint,software-breakpoint,single-step
"""break in the kernel: hits equal the guest's own count, and memory never shows the breakpoint instruction."""

from gdbcase import *
from linux import *

CALLS = 10


def body() -> None:
    text = mem(sym(SYSCALL), 16)
    poll()
    command("syscalls", CALLS)
    breakpoint = sbreak(SYSCALL)
    end = sbreak("agent_done")
    hits = 0
    while not (stop := cont()).at(end):
        check(stop.at(breakpoint), f"a stop that was not asked for: {stop}")
        equal("pc", stop.pc, sym(SYSCALL))
        equal("kernel text under the breakpoint", mem(sym(SYSCALL), 16), text)
        hits += 1
    equal("hits", hits, 2 * CALLS)
    equal("calls that the guest counted", counters(), [CALLS, CALLS])


run(body)
