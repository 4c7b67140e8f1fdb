# scenario: guest=bare cpus=1 timeout=60
"""Steps over MRS and MSR of DAIF with a timer interrupt pending: the guest sees its own masks, and keeps them."""

from bare import *
from gdbcase import *


def masks() -> int:
    return reg("cpsr") & PSTATE_DAIF


def body() -> None:
    select("step_daif", timer_period=100)
    run_to("step_daif")
    equal("masks at the start", masks(), 0)

    # (instruction, PSTATE.DAIF after it, register it reads DAIF into)
    program = [
        ("MRS X0, DAIF", 0, "x0"),
        ("MSR DAIFSET, #2", PSTATE_I, None),
        ("MRS X1, DAIF", PSTATE_I, "x1"),
        ("MSR DAIFCLR, #2", 0, None),
        ("MRS X2, DAIF", 0, "x2"),
        ("MOV X9, #0x3c0", 0, None),
        ("MSR DAIF, X9", PSTATE_DAIF, None),
        ("MRS X3, DAIF", PSTATE_DAIF, "x3"),
        ("MSR DAIF, X0", 0, None),
        ("MRS X4, DAIF", 0, "x4"),
    ]
    pc = sym("step_daif")
    for instruction, expected, register in program:
        pc += 4
        step_to(pc, instruction)
        equal(f"masks after {instruction}", masks(), expected)
        if register:
            equal(f"what {instruction} read", reg(register), expected)
    equal("pc", pc, sym("step_daif_end"))
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
