# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step,test:step_syscall
"""A step over SYSCALL ends in the kernel's entry, with RCX, R11 and flags as the instruction leaves them."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_syscall", timer_period=100)
    run_to("step_syscall")
    before = reg("eflags")
    check(before & EFLAGS_IF != 0, "interrupts are masked at the start")
    step_to("vector_syscall", "SYSCALL")
    equal("RCX", reg("rcx"), sym("step_syscall_after"))
    # RF is not saved.
    equal("R11", reg("r11"), before & ~(1 << 16))
    equal("IF and TF in the entry", reg("eflags") & (EFLAGS_IF | EFLAGS_TF), 0)
    run_to("step_syscall_after")
    equal("IF after the handler", reg("eflags") & EFLAGS_IF, EFLAGS_IF)
    equal("SYSCALLs that the guest counted", u64("syscall_count"), 1)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
