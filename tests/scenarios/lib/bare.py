"""Steering the bare-metal guest (tests/guest/bare)."""

from __future__ import annotations

from gdbcase import Stop, hbreak, cont_to, run_to, set_u64, u64

# enum test of main.c, in its order.
TESTS = (
    "none registers ops both_cpus slots brks step_daif step_svc step_eret step_el0 step_abort step_brk step_wfi "
    "step_exclusive step_plain"
).split()


def select(test: str, timer_period: int = 20000) -> None:
    """Boots the guest to its main function and selects a test, with the timer interrupting every so many ticks."""
    run_to("main")
    set_u64("timer_period", timer_period)
    set_u64("selected", TESTS.index(test))


def finish() -> Stop:
    """Lets the test run to its end."""
    return run_to("finished")


def timer_goes_on() -> bool:
    """Whether timer interrupts still reach the guest."""
    before = u64("timer_count")
    breakpoint = hbreak("irq")
    for _ in range(3):
        cont_to(breakpoint)
    breakpoint.delete()
    run_to("finished")
    return u64("timer_count") >= before + 2




def slots() -> tuple[int, int]:
    """Breakpoint and watchpoint registers of the CPU, as the guest read them from ID_AA64DFR0_EL1 after main began."""
    dfr0 = u64("dfr0")
    return (dfr0 >> 12 & 0xF) + 1, (dfr0 >> 20 & 0xF) + 1
