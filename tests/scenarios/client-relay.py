# scenario: guest=bare cpus=1 timeout=120 needs=single-step
"""A gdb that comes through guest-debug-relay is answered ahead of its questions, and sees what it would be told without that."""

import os

os.environ["THROUGH_RELAY"] = "yes"

from bare import *
from gdbcase import *
from rules import evaluates

STEPS = 80


def body() -> None:
    # A server that is not of this project answers nothing ahead.
    evaluates()
    select("none")
    finish()
    loops, changed = u64("loops"), 0
    before = answered_ahead()
    check(before is not None, "there is no relay")
    for step in range(1, STEPS + 1):
        pc = stepi()
        # Asked after every step, so that the relay has it brought along: in a loop that changes some of it.
        ahead = seen(pc)
        # A write ends what was answered ahead.
        set_u64("rounds", step)
        gdb.execute("maintenance flush register-cache", to_string=True)
        gdb.execute("maintenance flush dcache", to_string=True)
        equal(f"what gdb sees after step {step}, at {where(pc)}", ahead, seen(pc))
        equal("what was written", u64("rounds"), step)
        changed += u64("loops") != loops
        loops = u64("loops")
    check(changed > 1, "the guest's loop was not stepped through")
    saved = (answered_ahead() or 0) - (before or 0)
    check(saved >= 4 * STEPS, f"of what gdb asked after {STEPS} steps {saved} requests were answered ahead")

    # Ctrl-C gets through, and what runs does not look as it did.
    loops = u64("loops")
    run_for(0.3)
    check(u64("loops") > loops, "the guest did not run")


def seen(pc: int) -> tuple[object, ...]:
    registers = tuple(reg(name) for name in ARCH.general)
    return pc, mem(pc, 4), mem(reg("sp") & ~63, 64), u64("loops"), u64("selected"), registers


run(body)
