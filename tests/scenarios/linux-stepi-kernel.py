# scenario: guest=linux cpus=2 timeout=120 needs=single-step
"""200 stepi in a running kernel: none lands in an interrupt handler although the timer fires, and ticks go on after."""

from gdbcase import *
from linux import *

STEPS = 200


def body() -> None:
    poll()
    command("syscalls", 20)
    if can("hardware-breakpoint"):
        run_to(SYSCALL)
    thread = gdb.selected_thread().num
    for step in range(1, STEPS + 1):
        before = reg("pc")
        pc = stepi()
        check(pc != before or step == 1, f"step {step} stayed at {pc:#x} ({where(pc)})")
        check(not in_interrupt(pc), f"step {step}, from {where(before)}, landed in {where(pc)}")
        equal(f"thread of step {step}", gdb.selected_thread().num, thread)
    ticks = jiffies()
    done("syscalls")
    poll()
    check(jiffies() > ticks, "the kernel's tick stopped")


run(body)
