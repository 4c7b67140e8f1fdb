# scenario: guest=bare cpus=1 timeout=60 needs=single-step
"""A step over HLT ends although no interrupt will ever wake the CPU."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_hlt", timer_period=0)
    run_to("step_hlt")
    set_reg("eflags", reg("eflags") & ~EFLAGS_IF)
    check(masked(), "interrupts are on")
    step_to("step_hlt_after", "HLT")
    check(masked(), "the step has set IF")
    finish()


run(body)
