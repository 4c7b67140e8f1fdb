# scenario: guest=bare cpus=1 timeout=60 needs=single-step
"""A step over HLT with a timer interrupt on its way ends behind it, not in the handler."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_hlt", timer_period=2000)
    run_to("step_hlt")
    step_to("step_hlt_after", "HLT with the timer on")
    check(not masked(), "interrupts are masked after the step")
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the step")


run(body)
