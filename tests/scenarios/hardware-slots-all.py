# scenario: guest=bare cpus=1 timeout=90 needs=hardware-breakpoint,watchpoint,single-step
"""Every breakpoint and watchpoint register in use at once: each one hits, and once only."""

from bare import *
from gdbcase import *


def body() -> None:
    select("none", timer_period=2000)
    finish()
    breakpoints, watchpoints = slots_together()
    set_u64("selected", TESTS.index("slots"))
    words = sym("slot_words")
    # One breakpoint register is for the end of the test.
    points = [(i, hbreak(f"slot_{i}")) for i in range(breakpoints - 1)]
    watches = [watch(words + 8 * i, 8) for i in range(watchpoints)]
    end = hbreak("finished")
    for i in range(16):
        if i < len(points):
            cont_to(points[i][1])
            equal(f"calls of slot_{i} so far", u64(sym("slot_calls") + 8 * i), 0)
        if i < len(watches):
            cont_to(watches[i])
            equal(f"slot word {i}", u64(words + 8 * i), i + 1)
    cont_to(end)
    equal("calls", [u64(sym("slot_calls") + 8 * i) for i in range(16)], [1] * 16)
    equal("words", [u64(words + 8 * i) for i in range(16)], list(range(1, 17)))


run(body)
