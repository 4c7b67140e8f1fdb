# scenario: guest=bare cpus=1 timeout=90 needs=single-step
"""200 stepi with the guest's timer always pending: each goes to the next instruction, none into a handler."""

from bare import *
from gdbcase import *

STEPS = 200


def body() -> None:
    select("step_plain", timer_period=50)
    run_to("step_plain")
    taken = u64("timer_count")
    # gdb need not read the code around every step from the guest.
    gdb.execute("set trust-readonly-sections on", to_string=True)
    low, high = sym("step_plain"), sym("step_plain_end")
    for step in range(1, STEPS + 1):
        total, added, before = argument(0), argument(1), reg("pc")
        pc = stepi()
        check(low <= pc < high, f"step {step} went to {pc:#x} ({where(pc)})")
        if before == sym("step_plain_add"):
            equal("the sum", argument(0), total + added)
        check(not masked(), f"step {step} leaves interrupts masked")
    equal("timer interrupts taken during the steps", u64("timer_count"), taken)
    finish()
    check(u64("timer_count") > taken, "the pending interrupt was never taken afterwards")
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
