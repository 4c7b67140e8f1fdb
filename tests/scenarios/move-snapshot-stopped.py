# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,software-breakpoint,watchpoint,single-step
"""A guest that is saved at a breakpoint: the next client is told that stop, with its thread, and everything still hits."""

from fleet import *
from moving import *


def body() -> None:
    poll()
    arm()
    command("syscalls", 1)
    while where_it_is() != HARDWARE:
        cont()
    registers = [reg(name) for name in ARCH.general]
    thread = gdb.selected_thread().num
    saved = snapshot(FIRST, "stopped")
    check("saved in" in saved, saved)
    forget()

    other = restore("stopped")
    stop = meet(other)
    equal("place", where_it_is(), HARDWARE)
    equal("thread", stop.thread, thread)
    equal("registers", [reg(name) for name in ARCH.general], registers)
    everything_listed()
    hits = hits_to_the_end()
    equal("hits of the hardware breakpoint that were left", hits.get(HARDWARE), 1)
    a_whole_round(hits_of_a_round())


run(body)
