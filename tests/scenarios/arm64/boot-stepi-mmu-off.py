# scenario: guest=bare cpus=1 timeout=60
"""stepi in boot code with the MMU off, every pc and register known, then across the switch to the MMU on."""

from bare import *
from gdbcase import *


def body() -> None:
    run_to("boot_code")
    sctlr = sysreg("SCTLR_EL1")
    equal("SCTLR_EL1.M", reg(sctlr) & 1, 0)
    equal("mode", reg("cpsr") & PSTATE_MODE, MODE_EL1H)

    # mov x19, x0; mov x1, #0; mov x2, #5
    for n in range(1, 4):
        step_to(sym("boot_code") + 4 * n, f"step {n} of the boot code")
    equal("x2", reg("x2"), 5)
    total = 0
    for left in range(5, 0, -1):
        step_to(sym("boot_loop") + 4, "ADD")
        total += left
        equal("x1", reg("x1"), total)
        step_to(sym("boot_loop") + 8, "SUBS")
        equal("PSTATE.Z", reg("cpsr") >> 30 & 1, int(left == 1))
        step_to("boot_loop" if left > 1 else "boot_loop_end", "B.NE")
    equal("x1", reg("x1"), 15)

    # Software breakpoint, and memory by its physical address, while there is no translation.
    breakpoint = sbreak("mmu_enable")
    cont_to(breakpoint)
    equal("SCTLR_EL1.M", reg(sctlr) & 1, 0)
    equal("code through a debugger's eyes", mem(sym("mmu_enable"), 4)[3] & 0x9F, 0x90)  # ADRP, not our BRK
    breakpoint.delete()

    # Steps over MSR SCTLR_EL1 and the ISB behind it, with identity mapping on both sides.
    for _ in range(40):
        pc = stepi()
        if pc == sym("mmu_is_on"):
            break
    equal("pc", reg("pc"), sym("mmu_is_on"))
    equal("SCTLR_EL1.M", reg(sctlr) & 1, 1)

    # Now GiB 256 is RAM as well: the same bytes through the tables, and nothing where nothing is mapped.
    address = sym("boot_code")
    alias = 256 << 30 | address & (1 << 30) - 1
    equal("code through the alias", mem(alias, 64), mem(address, 64))
    fails("an address that is not mapped", lambda: mem(300 << 30, 8))
    run_to("main")


run(body)
