# scenario: guest=bare cpus=1 timeout=60 needs=single-step,iret-step
"""Steps over IRETQ within CPL 0, to interrupts off and on: the flags are what was on the stack."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_iret", timer_period=100)
    run_to("step_iret_off")
    stack = reg("rdx")
    step_to("step_iret_off_target", "IRETQ with IF clear")
    equal("flags", reg("eflags"), 2)
    equal("rsp", reg("rsp"), stack)
    taken = u64("timer_count")
    for _ in range(5):
        step_on("PUSH")
    equal("pc", reg("pc"), sym("step_iret_on"))
    step_to("step_iret_after", "IRETQ with IF set")
    equal("flags", reg("eflags"), 0x202)
    equal("rsp", reg("rsp"), stack)
    equal("timer interrupts taken during the steps", u64("timer_count"), taken)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
