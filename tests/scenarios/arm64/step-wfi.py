# scenario: guest=bare cpus=1 timeout=60
"""A step over WFI with a timer interrupt on its way ends behind it, not in the handler."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_wfi", timer_period=2000)
    run_to("step_wfi_insn")
    step_to("step_wfi_after", "WFI with the timer on")
    equal("masks", reg("cpsr") & PSTATE_DAIF, 0)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the step")


run(body)
