# scenario: guest=linux cpus=2 timeout=180 last=yes needs=hardware-breakpoint,software-breakpoint,single-step
"""Breakpoints of both kinds are there again after the guest has rebooted, and on both of its vCPUs."""

from gdbcase import *
from linux import *


def body() -> None:
    poll()
    command("reboot")
    early, late = hbreak("start_kernel"), sbreak("kernel_init")
    watched = hbreak(SYSCALL)
    cont_to(early)
    equal("thread", gdb.selected_thread().num, 1)
    cont_to(late)
    equal("caller", call_chain(0)[1], "ret_from_fork")
    early.delete()
    late.delete()

    poll()
    command("syscalls", 2)
    end = hbreak("agent_done")
    threads = []
    while not (stop := cont()).at(end):
        check(stop.at(watched), f"a stop that was not asked for: {stop}")
        threads.append(stop.thread)
    equal("hits per thread", sorted(threads), [1, 1, 2, 2])


run(body)
