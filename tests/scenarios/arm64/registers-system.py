# scenario: guest=bare cpus=1 timeout=60
"""System registers hold what the guest set, and the guest finds what the debugger wrote."""

from bare import *
from gdbcase import *

FRAME_SYS = 272
# What regs.S sets, in the order in which it stores them.
VALUES = {
    "TPIDR_EL0": 0x1122334455667788,
    "TPIDR_EL1": 0x8877665544332211,
    "CONTEXTIDR_EL1": 0xABCDEF01,
    "TPIDRRO_EL0": 0x0F1E2D3C4B5A6978,
}


def body() -> None:
    select("registers")
    run_to("regs_set")
    for name, value in VALUES.items():
        equal(name, reg(sysreg(name)), value)
    equal("VBAR_EL1", reg(sysreg("VBAR_EL1")), sym("vectors"))
    equal("TTBR0_EL1", reg(sysreg("TTBR0_EL1")), sym("level1"))

    frame = sym("regs_frame")
    for n, name in enumerate(VALUES):
        set_reg(sysreg(name), 0x55AA0000 + n)
        equal(f"{name} read back", reg(sysreg(name)), 0x55AA0000 + n)
    set_reg("sp", frame)
    run_to("regs_stored")
    for n, name in enumerate(VALUES):
        equal(f"{name} that the guest stored", u64(frame + FRAME_SYS + 8 * n), 0x55AA0000 + n)
    finish()


run(body)
