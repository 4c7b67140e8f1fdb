# scenario: guest=bare cpus=1 timeout=60
"""A step over a load that faults, and over a BRK of the guest's own, ends in the guest's vector."""

from bare import *
from gdbcase import *


def in_vector(elr: int, ec: int, spsr: int) -> None:
    equal("ELR_EL1", reg(sysreg("ELR_EL1")), elr)
    equal("exception class", reg(sysreg("ESR_EL1")) >> 26 & 0x3F, ec)
    equal("SPSR_EL1", reg(sysreg("SPSR_EL1")) & (PSTATE_DAIF | PSTATE_MODE), spsr & (PSTATE_DAIF | PSTATE_MODE))
    equal("masks in the vector", reg("cpsr") & PSTATE_DAIF, PSTATE_DAIF)


def body() -> None:
    select("step_abort", timer_period=100)
    run_to("step_abort_insn")
    before = reg("cpsr")
    step_to("vector_sync", "a load from an address that is not mapped")
    in_vector(sym("step_abort_insn"), 0x25, before)
    equal("FAR_EL1", reg(sysreg("FAR_EL1")), 300 << 30)
    run_to("step_abort_after")
    finish()
    equal("aborts that the guest counted", u64("abort_count"), 1)
    equal("FAR that the guest saw", u64("abort_far"), 300 << 30)

    set_u64("selected", TESTS.index("step_brk"))
    run_to("step_brk_insn")
    before = reg("cpsr")
    pc = stepi()
    if pc == sym("step_brk_insn"):
        # Reported as a SIGTRAP of its own first; the next step gives it to the guest.
        pc = stepi()
    equal("pc after BRK", pc, sym("vector_sync"))
    in_vector(sym("step_brk_insn"), 0x3C, before)
    finish()
    equal("BRKs that the guest counted", u64("brk_count"), 1)
    equal("comment of the BRK that the guest saw", u64("brk_esr") & 0xFFFF, 0x77)
    check(timer_goes_on(), "the guest gets no timer interrupt after the steps")


run(body)
