# scenario: guest=bare cpus=1 timeout=60 needs=single-step
"""A step over MOV to SS takes the next instruction along at most: a CPU lets nothing trap in between."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_mov_ss", timer_period=100)
    run_to("step_mov_ss_insn")
    equal("rax", reg("rax"), 0)
    pc = stepi()
    if pc == sym("step_mov_ss_next"):
        # KVM emulates it.
        pc = stepi()
    equal("pc", pc, sym("step_mov_ss_after"))
    equal("rax", reg("rax"), 1)
    step_on("the next ADD")
    equal("rax", reg("rax"), 2)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
