# scenario: guest=linux cpus=2 timeout=90 needs=hardware-breakpoint,software-breakpoint,single-step
"""Detach leaves neither breakpoints nor their bytes behind, however often; the guest runs meanwhile."""

import time

from gdbcase import *
from linux import *

TEXT = 64 * 1024


def body() -> None:
    start = sym(SYSCALL) & ~0xFFF
    text = mem(start, TEXT)
    for _ in range(3):
        poll()
        command("syscalls", 3)
        points = [sbreak(SYSCALL), hbreak(SYSCALL), sbreak(NEVER), hbreak(NEVER)]
        cont_to(points[0])
        ticks = jiffies()
        # The guest is inside the function, its breakpoints are still inserted as far as gdb is concerned.
        gdb.execute("set breakpoint always-inserted on", to_string=True)
        detach()
        delete_all()
        gdb.execute("set breakpoint always-inserted off", to_string=True)
        time.sleep(0.5)
        connect()
        check(jiffies() > ticks, "the guest did not run while detached")
        check(mem(start, TEXT) == text, "kernel text has changed")
        poll()
        equal("calls that the guest counted", counters(), [3, 3])


run(body)
