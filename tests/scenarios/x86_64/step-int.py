# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step,test:step_int,test:step_int3
"""A step over INT, and over an INT3 of the guest's own, ends in its handler, with the flags of before on the stack."""

from bare import *
from gdbcase import *


def into(vector: str, behind: str) -> None:
    before, stack = reg("eflags") & ~(1 << 16), reg("rsp")
    pc = stepi()
    if pc == sym("step_int3"):
        # Reported as a SIGTRAP of its own first; the next step gives it to the guest.
        pc = stepi()
    equal("pc", pc, sym(vector))
    frame = reg("rsp")
    equal("RIP on the stack", u64(frame), sym(behind))
    equal("flags on the stack", u64(frame + 16), before)
    equal("RSP on the stack", u64(frame + 24), stack)
    equal("IF and TF in the handler", reg("eflags") & (EFLAGS_IF | EFLAGS_TF), 0)
    run_to(behind)
    equal("IF after the handler", reg("eflags") & EFLAGS_IF, EFLAGS_IF)
    finish()


def body() -> None:
    select("step_int", timer_period=100)
    run_to("step_int")
    into("vector_int", "step_int_after")
    equal("INTs that the guest counted", u64("int_count"), 1)
    set_u64("selected", TESTS.index("step_int3"))
    run_to("step_int3")
    into("vector_bp", "step_int3_after")
    equal("INT3s that the guest counted", u64("brk_count"), 1)
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
