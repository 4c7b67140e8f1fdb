# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,single-step
"""A guest that is saved while one vCPU serves an interrupt, and the other one does not: both go on where it is restored."""

import time

from fleet import *
from moving import *

# Between the interrupt's acknowledgement and its end.
SERVES = "arch_timer_handler_virt"
# It masks interrupts to idle, and serves none.
IDLES = "cpu_do_idle"
# A vCPU that idles has few interrupts, and how many hits of the other's come first says how fast gdb is.
PATIENT = 60


def serves_none(cpu: int) -> bool:
    gdb.execute(f"thread {cpu + 1}", to_string=True)
    return not masked() or where(reg("pc")).split(" ")[0] == IDLES


def serve(cpu: int) -> None:
    """Stops this vCPU in its handler and the other one outside of any."""
    handler = hbreak(SERVES)
    deadline = time.monotonic() + PATIENT * PATIENCE
    while time.monotonic() < deadline:
        cont_to(handler)
        if gdb.selected_thread().num == cpu + 1 and serves_none(1 - cpu):
            gdb.execute(f"thread {cpu + 1}", to_string=True)
            handler.delete()
            return
    raise Failure(f"vCPU {cpu} never serves an interrupt alone")


def body() -> None:
    poll()
    vm = FIRST
    for cpu in range(2):
        serve(cpu)
        name = f"interrupt-{cpu}"
        snapshot(vm, name)
        forget()
        vm = restore(name)
        meet(vm)
        equal("place", where(reg("pc")), SERVES)
        equal("vCPU", gdb.selected_thread().num, cpu + 1)
        poll()
        command("syscalls", 3)
        done("syscalls")
        equal("calls that the guest counted", counters(), [3, 3])


run(body)
