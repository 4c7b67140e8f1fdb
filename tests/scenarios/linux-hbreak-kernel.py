# scenario: guest=linux cpus=2 timeout=60 needs=hardware-breakpoint,single-step
"""hbreak in the kernel: each call of the guest hits once, on its vCPU, with its callers up to the system call entry."""

from gdbcase import *
from linux import *

CALLS = 5


def body() -> None:
    poll()
    command("syscalls", CALLS)
    breakpoint = hbreak(SYSCALL)
    end = hbreak("agent_done")
    threads: list[int] = []
    while not (stop := cont()).at(end):
        check(stop.at(breakpoint), f"a stop that was not asked for: {stop}")
        equal("pc", stop.pc, sym(SYSCALL))
        check(not in_user_mode(), "the vCPU is in user mode")
        threads.append(stop.thread)
        if len(threads) == 1:
            chain = call_chain(4)
            check(all(name in chain for name in ARCH.callers), f"call chain: {chain}")
    equal("hits per thread", {t: threads.count(t) for t in sorted(threads)}, {1: CALLS, 2: CALLS})
    equal("calls that the guest counted", counters(), [CALLS, CALLS])


run(body)
