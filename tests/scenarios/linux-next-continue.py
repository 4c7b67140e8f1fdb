# scenario: guest=linux cpus=2 timeout=120 needs=hardware-breakpoint,software-breakpoint,single-step
"""next, stepi and continue after a hit while the other vCPU is busy."""

from gdbcase import *
from linux import *

HITS = 20


def line() -> int:
    return gdb.newest_frame().find_sal().line


def body() -> None:
    poll()
    command("hammer")
    done("hammer")

    # Line by line in the user program, over a call, while the other threads make system calls.
    poll()
    command("lines", 10)
    start = gdb.Breakpoint("lines", gdb.BP_BREAKPOINT)
    cont_to(start)
    first, thread = line(), gdb.selected_thread().num
    for n in range(1, 5):
        gdb.execute("next", to_string=True)
        equal(f"line after next number {n}", line(), first + n)
        equal("function", gdb.newest_frame().name(), "lines")
    equal("c", int(gdb.parse_and_eval("c")), 11 + 33)
    equal("thread", gdb.selected_thread().num, thread)
    start.delete()
    done("lines")

    # A breakpoint that both vCPUs keep hitting.
    breakpoint = sbreak(SYSCALL)
    threads = []
    for n in range(HITS):
        stop = cont_to(breakpoint)
        threads.append(stop.thread)
        if n % 4 == 0:
            step_to(after(sym(SYSCALL)), "stepi from the breakpoint")
            equal("thread", gdb.selected_thread().num, stop.thread)
    breakpoint.delete()
    check(len(set(threads)) == 2, f"all hits were on thread {threads[0]}")
    poll()
    command("calm")
    done("calm")


run(body)
