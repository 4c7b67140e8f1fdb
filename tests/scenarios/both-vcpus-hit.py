# scenario: guest=bare cpus=2 timeout=240
"""Both vCPUs run into one breakpoint together, 1,000 times: every hit is reported once, and the guest counts the same."""

from bare import *
from gdbcase import *

ROUNDS = 1000


def body() -> None:
    select("both_cpus", timer_period=0)
    set_u64("rounds", ROUNDS)
    # Behind the function's prologue nothing is left: the counter moves after the breakpoint.
    breakpoint = sbreak("hit_me")
    end = hbreak("finished")
    seen: dict[int, int] = {}
    while True:
        stop = cont()
        if stop.at(end):
            break
        check(stop.at(breakpoint), f"a stop that was not asked for: {stop}")
        cpu = reg("x0")
        equal("thread", stop.thread, cpu + 1)
        seen[cpu] = seen.get(cpu, 0) + 1
        equal(f"hits that vCPU {cpu} had counted at stop {seen[cpu]}", u64(sym("hits") + 8 * cpu), seen[cpu] - 1)
    equal("hits reported", seen, {0: ROUNDS, 1: ROUNDS})
    equal("hits that the guest counted", [u64(sym("hits")), u64(sym("hits") + 8)], [ROUNDS, ROUNDS])


run(body)
