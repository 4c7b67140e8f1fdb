# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,watchpoint,single-step
"""One hbreak, or one watch, more than there are registers is refused, and the guest goes on with what fits."""

from bare import *
from gdbcase import *


def body() -> None:
    select("none", timer_period=2000)
    finish()
    breakpoints, watchpoints = slots()
    set_u64("selected", TESTS.index("slots"))
    points = [hbreak(f"slot_{i}") for i in range(breakpoints + 1)]
    refused(f"hbreak number {breakpoints + 1}")
    points.pop().delete()
    cont_to(points[0])
    for point in points:
        point.delete()

    watches = [watch(sym("slot_words") + 8 * (i + 8), 8) for i in range(watchpoints + 1)]
    refused(f"watch number {watchpoints + 1}")
    watches.pop().delete()
    cont_to(watches[0])
    equal("slot word", u64(sym("slot_words") + 64), 9)
    for point in watches:
        point.delete()
    finish()


run(body)
