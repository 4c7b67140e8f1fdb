# scenario: guest=bare cpus=1 timeout=60 needs=hardware-breakpoint,single-step
"""All four debug registers as breakpoints: each one hits, and once only; a fifth is refused."""

from bare import *
from gdbcase import *


def body() -> None:
    select("none", timer_period=2000)
    finish()
    set_u64("selected", TESTS.index("slots"))
    points = [hbreak(f"slot_{i}") for i in range(5)]
    refused("a fifth breakpoint")
    points.pop().delete()
    for i, point in enumerate(points):
        cont_to(point)
        equal(f"calls of slot_{i} so far", u64(sym("slot_calls") + 8 * i), 0)
    points.pop().delete()
    cont_to(hbreak("finished"))
    equal("calls", [u64(sym("slot_calls") + 8 * i) for i in range(16)], [1] * 16)


run(body)
