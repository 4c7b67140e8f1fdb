"""Steering the bare-metal guest (tests/guest/bare)."""

from __future__ import annotations

from arch import ARCH, can
from gdbcase import Failure, Stop, cont_to, hbreak, run_for, run_to, set_u64, u64

TESTS = ARCH.tests


def select(test: str, timer_period: int = 20000) -> None:
    """Boots the guest to its main function and selects a test, with the timer interrupting every so many ticks."""
    run_to("main")
    set_u64("timer_period", timer_period * ARCH.timer_scale)
    set_u64("selected", TESTS.index(test))


def finish() -> Stop:
    """Lets the test run to its end. Without breakpoints the guest is somewhere in its main loop then."""
    if can("hardware-breakpoint"):
        return run_to("finished")
    loops = u64("loops")
    for _ in range(50):
        stop = run_for(0.2)
        if u64("loops") > loops:
            return stop
    raise Failure("the test does not end")


def timer_goes_on() -> bool:
    """Whether timer interrupts still reach the guest."""
    before = u64("timer_count")
    if not can("hardware-breakpoint"):
        run_for(0.5)
        return u64("timer_count") >= before + 2
    breakpoint = hbreak("irq")
    for _ in range(3):
        cont_to(breakpoint)
    breakpoint.delete()
    run_to("finished")
    return u64("timer_count") >= before + 2


def slots() -> tuple[int, int]:
    """Breakpoint and watchpoint registers of the CPU, one kind by itself; after main began."""
    if ARCH.slots:
        return ARCH.slots, ARCH.slots
    # What the guest has read from ID_AA64DFR0_EL1.
    dfr0 = u64("dfr0")
    return (dfr0 >> 12 & 0xF) + 1, (dfr0 >> 20 & 0xF) + 1


def slots_together() -> tuple[int, int]:
    """The same for both kinds at once."""
    return (ARCH.slots - ARCH.slots // 2, ARCH.slots // 2) if ARCH.slots else slots()
