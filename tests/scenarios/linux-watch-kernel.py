# scenario: guest=linux cpus=2 timeout=60 needs=watchpoint,single-step
"""watch of a kernel variable that the timer interrupt writes: each write stops, one tick apart."""

from gdbcase import *
from linux import *


def body() -> None:
    point = watch(jiffies_address(), 8)
    seen = []
    for _ in range(5):
        stop = cont()
        check(stop.at(point), f"a stop that was not asked for: {stop}")
        seen.append(jiffies())
        check(where(stop.pc).split(" ")[0] in ("do_timer", "tick_do_update_jiffies64"), f"written by {where(stop.pc)}")
    check(all(a < b for a, b in zip(seen, seen[1:])), f"jiffies {seen} do not grow")


run(body)
