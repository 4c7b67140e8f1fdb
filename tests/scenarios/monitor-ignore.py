# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,software-breakpoint,single-step
"""monitor ignore passes as many calls as asked, over all vCPUs and while gdb takes its breakpoints out and puts them back."""

from gdbcase import *
from linux import *
from rules import *

CALLS = 30
IGNORED = 41


def body() -> None:
    evaluates()
    poll()
    for kind, insert in (("hardware breakpoint", hbreak), ("software breakpoint", sbreak)):
        point = insert(SYSCALL)
        text = monitor(f"ignore {sym(SYSCALL):#x} {IGNORED}")
        check(f"the next {IGNORED} hits" in text, text)
        command("syscalls", CALLS)
        end = hbreak("agent_done")
        stops = 0
        while not (stop := cont()).at(end):
            check(stop.at(point), f"a stop that was not asked for: {stop}")
            stops += 1
            if stops == 1:
                counted = sum(counters())
                # The call that stopped, and perhaps one of the other vCPU, have not been counted by the guest.
                check(counted in (IGNORED, IGNORED - 1), f"the guest has counted {counted}")
        equal("stops", stops, 2 * CALLS - IGNORED)
        equal("counts", counts(kind, SYSCALL), Counts(2 * CALLS, 2 * CALLS, 0))
        point.delete()
        end.delete()
        poll()


run(body)
