# scenario: guest=bare cpus=1 timeout=30
"""A step over WFI ends although no interrupt will ever wake the CPU."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_wfi", timer_period=0)
    run_to("step_wfi_insn")
    set_reg("cpsr", reg("cpsr") | PSTATE_I)
    step_to("step_wfi_after", "WFI")
    equal("masks", reg("cpsr") & PSTATE_DAIF, PSTATE_DAIF)
    finish()


run(body)
