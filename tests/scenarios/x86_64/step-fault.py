# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step,test:step_fault
"""A step over a load that faults ends in the guest's handler, with the flags of before on the stack."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_fault", timer_period=100)
    run_to("step_fault_insn")
    before, stack = reg("eflags"), reg("rsp")
    step_to("vector_pf", "a load from an address that is not mapped")
    frame = reg("rsp")
    equal("error code", u64(frame), 0)
    equal("RIP on the stack", u64(frame + 8), sym("step_fault_insn"))
    # A fault saves RF set (SDM volume 3, 18.3.1.1).
    equal("flags on the stack", u64(frame + 24) & ~(1 << 16), before & ~(1 << 16))
    equal("RSP on the stack", u64(frame + 32), stack)
    equal("CR2", reg("cr2"), 300 << 30)
    equal("IF and TF in the handler", reg("eflags") & (EFLAGS_IF | EFLAGS_TF), 0)
    run_to("step_fault_after")
    equal("IF after the handler", reg("eflags") & EFLAGS_IF, EFLAGS_IF)
    finish()
    equal("faults that the guest counted", u64("abort_count"), 1)
    equal("address that the guest saw", u64("abort_far"), 300 << 30)
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
