# scenario: guest=bare cpus=1 timeout=60
"""Steps over ERET, to EL1 masked and unmasked and to EL0 and back by SVC: PSTATE is what SPSR said."""

from bare import *
from gdbcase import *


def body() -> None:
    select("step_eret", timer_period=100)
    run_to("step_eret_masked")
    step_to("step_eret_masked_target", "ERET to EL1 with everything masked")
    equal("PSTATE", reg("cpsr") & (PSTATE_DAIF | PSTATE_MODE), PSTATE_DAIF | MODE_EL1H)
    for _ in range(4):
        stepi()
    equal("pc", reg("pc"), sym("step_eret_unmasked"))
    step_to("step_eret_after", "ERET to EL1 with nothing masked")
    equal("PSTATE", reg("cpsr") & (PSTATE_DAIF | PSTATE_MODE), MODE_EL1H)
    finish()

    set_u64("selected", TESTS.index("step_el0"))
    run_to("step_el0_eret")
    el1_sp = reg("sp")
    target = reg("x0")
    step_to(target, "ERET to EL0")
    equal("PSTATE", reg("cpsr") & (PSTATE_DAIF | PSTATE_MODE), MODE_EL0T)
    step_to(target + 4, "MOV at EL0")
    equal("x1", reg("x1"), 0x123)
    step_to(target + 8, "ADD at EL0")
    equal("x1", reg("x1"), 0x124)
    step_to("vector_el0_sync", "SVC at EL0")
    equal("sp", reg("sp"), el1_sp)
    equal("SPSR_EL1", reg(sysreg("SPSR_EL1")) & (PSTATE_DAIF | PSTATE_MODE), MODE_EL0T)
    equal("ELR_EL1", reg(sysreg("ELR_EL1")), target + 12)
    equal("masks in the vector", reg("cpsr") & PSTATE_DAIF, PSTATE_DAIF)
    run_to("step_el0_back")
    equal("PSTATE", reg("cpsr") & (PSTATE_DAIF | PSTATE_MODE), MODE_EL1H)
    finish()
    equal("SVCs from EL0 that the guest counted", u64("el0_svc_count"), 1)
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
