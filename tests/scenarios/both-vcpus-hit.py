# scenario: guest=bare cpus=2 timeout=240 needs=hardware-breakpoint,single-step
"""Both vCPUs run into one breakpoint together, 1,000 times: every hit is reported once, and the guest counts the same."""

from bare import *
from gdbcase import *

ROUNDS = 1000


def body() -> None:
    select("both_cpus", timer_period=0)
    set_u64("rounds", ROUNDS)
    # Otherwise gdb takes both breakpoints out and puts them in again at every stop.
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    # And reads the code around every stop from the guest.
    gdb.execute("set trust-readonly-sections on", to_string=True)
    seen = {0: 0, 1: 0}
    counters = sym("hits")

    def on_hit() -> None:
        cpu = argument(0)
        equal("thread", gdb.selected_thread().num, cpu + 1)
        if seen[cpu] % 50 == 0:
            equal(f"hits that vCPU {cpu} has counted before hit {seen[cpu]}", u64(counters + 8 * cpu), seen[cpu])
        seen[cpu] += 1

    point = Tally("hit_me", on_hit)
    end = hbreak("finished")
    stop = cont()
    if point.failure:
        raise point.failure
    check(stop.at(end), f"a stop that was not asked for: {stop}")
    equal("hits reported", seen, {0: ROUNDS, 1: ROUNDS})
    equal("hits that the guest counted", [u64(counters), u64(counters + 8)], [ROUNDS, ROUNDS])


run(body)
