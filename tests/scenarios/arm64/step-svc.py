# scenario: guest=bare cpus=1 timeout=60
"""A step over SVC ends in the vector with SPSR, ELR and ESR as the instruction leaves them, interrupts on or off."""

from bare import *
from gdbcase import *


def take_svc(instruction: int, masks: int, immediate: int) -> None:
    before = reg("cpsr")
    equal("masks before SVC", before & PSTATE_DAIF, masks)
    step_to("vector_sync", "SVC")
    equal("SPSR_EL1", reg(sysreg("SPSR_EL1")) & 0xFFFFFFFF, before & 0xFFFFFFFF & ~(1 << 21))
    equal("ELR_EL1", reg(sysreg("ELR_EL1")), instruction + 4)
    equal("ESR_EL1", reg(sysreg("ESR_EL1")), 0x15 << 26 | 1 << 25 | immediate)
    equal("masks in the vector", reg("cpsr") & PSTATE_DAIF, PSTATE_DAIF)
    # The handler counts and comes back behind the SVC, with the masks of before.
    run_to(instruction + 4)
    equal("masks after the handler", reg("cpsr") & PSTATE_DAIF, masks)


def body() -> None:
    select("step_svc", timer_period=100)
    run_to("step_svc")
    take_svc(sym("step_svc"), 0, 42)
    run_to("step_svc_masked_insn")
    take_svc(sym("step_svc_masked_insn"), PSTATE_I, 43)
    equal("SVCs that the guest counted", u64("svc_count"), 2)
    finish()
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
