# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=single-step
"""A Linux guest that is saved between steps, restored, and moved on is at the same place each time, and runs."""

from fleet import *
from moving import *

STEPS = 20


def places() -> list[tuple[int, ...]]:
    """General registers of each vCPU."""
    found = []
    for cpu in range(cpus()):
        gdb.execute(f"thread {cpu + 1}", to_string=True)
        found.append(tuple(reg(name) for name in ARCH.general))
    return found


def steps(thread: int) -> None:
    gdb.execute(f"thread {thread}", to_string=True)
    gdb.execute("set scheduler-locking on", to_string=True)
    for step in range(STEPS):
        pc = stepi()
        check(not in_interrupt(pc), f"step {step} landed in {where(pc)}")
    gdb.execute("set scheduler-locking off", to_string=True)


def body() -> None:
    thread = poll().thread
    steps(thread)
    before, code = places(), mem(sym("_stext"), 4096)
    snapshot(FIRST, "anywhere")
    forget()

    other = restore("anywhere")
    meet(other)
    equal("registers", places(), before)
    check(mem(sym("_stext"), 4096) == code, "the kernel's text has changed")
    steps(thread)
    moved = places()
    third = migrate(other)
    forget()
    check((ended(other, 20.0) or "").startswith("exit code 0"), "the source has not ended")
    meet(third)
    equal("registers", places(), moved)
    ticks = jiffies()
    polls = agent_polls()
    check(jiffies() > ticks, "the kernel's tick stopped")
    run_for(1.0)
    check(agent_polls() > polls, "the agent does not go on")


def agent_polls() -> int:
    poll()
    return u64("polls")


run(body)
