# scenario: guest=linux cpus=2 timeout=60
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
        equal("mode", reg("cpsr") & PSTATE_MODE, MODE_EL1H)
        threads.append(stop.thread)
        if len(threads) == 1:
            chain = call_chain(4)
            check("invoke_syscall" in chain and "el0_svc" in chain, f"call chain: {chain}")
    equal("hits per thread", {t: threads.count(t) for t in sorted(threads)}, {1: CALLS, 2: CALLS})
    equal("calls that the guest counted", [u64(sym("syscalls") + 8 * n) for n in range(2)], [CALLS, CALLS])


run(body)
