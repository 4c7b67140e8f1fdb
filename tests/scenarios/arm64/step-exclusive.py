# scenario: guest=bare cpus=1 timeout=60
"""stepi gets through a LDAXR/STLXR loop, and the guest's counter goes up by one exactly."""

from bare import *
from gdbcase import *

STEPS_ALLOWED = 40


def body() -> None:
    select("step_exclusive", timer_period=2000)
    run_to("step_exclusive_loop")
    counter = reg("x0")
    equal("counter", u64(counter), 0)
    for steps in range(1, STEPS_ALLOWED + 1):
        pc = stepi()
        inside = sym("step_exclusive_loop") <= pc <= sym("step_exclusive_after")
        check(inside, f"step {steps} went to {pc:#x} ({where(pc)})")
        if pc == sym("step_exclusive_after"):
            break
    equal("pc", reg("pc"), sym("step_exclusive_after"))
    equal("counter", u64(counter), 1)
    equal("masks", reg("cpsr") & PSTATE_DAIF, 0)
    finish()
    equal("counter", u64("exclusive_counter"), 1)

    # The same with a breakpoint behind the loop and another one inside it being stepped away from.
    set_u64("selected", TESTS.index("step_exclusive"))
    run_to("step_exclusive_loop")
    armed = hbreak("step_exclusive_after")
    cont_to(armed)
    armed.delete()
    equal("counter", u64("exclusive_counter"), 2)
    finish()


run(body)
