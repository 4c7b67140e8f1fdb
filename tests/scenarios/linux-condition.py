# scenario: guest=linux cpus=2 timeout=180 needs=hardware-breakpoint,software-breakpoint,single-step
"""A condition on a kernel function that both vCPUs call: false, no hit is shown and none is missed; it becomes true at the right one."""

from gdbcase import *
from linux import *
from rules import *

CALLS = 400
AT = 150


def false(kind: str, point: gdb.Breakpoint, calls: int) -> None:
    """The guest makes so many calls on each vCPU, and nobody hears of one."""
    point.condition = f"{doubleword(sym('syscalls'))} == {CALLS + 1}"
    before = counts(kind, SYSCALL).reached if calls else 0
    poll()
    command("syscalls", CALLS)
    end = hbreak("agent_done")
    stop = cont()
    check(stop.at(end), f"a stop that was not asked for: {stop}")
    end.delete()
    equal("calls that the guest counted", counters(), [CALLS, CALLS])
    now = counts(kind, SYSCALL)
    equal(f"calls that the {kind} met", now.reached - before, 2 * CALLS)
    equal("calls that counted", now.hits, 0)


def true(kind: str, point: gdb.Breakpoint, cpu: int) -> None:
    """Of all calls on both vCPUs it is this one of this vCPU."""
    mine = f"{ARCH.cpu_mark} == {cpu_mark(cpu):#x}"
    point.condition = f"{mine} && {doubleword(sym('syscalls') + 8 * cpu)} == {AT}"
    hits = counts(kind, SYSCALL).hits
    poll()
    command("syscalls", CALLS)
    stop = cont_to(point)
    equal("thread", stop.thread, cpu + 1)
    equal("calls that its vCPU has counted", u64(sym("syscalls") + 8 * cpu), AT)
    equal("calls that counted", counts(kind, SYSCALL).hits, hits + 1)
    done("syscalls")
    equal("calls that the guest counted", counters(), [CALLS, CALLS])


def body() -> None:
    evaluates()
    poll()
    for kind, insert in (("hardware breakpoint", hbreak), ("software breakpoint", sbreak)):
        point = insert(SYSCALL)
        false(kind, point, 0)
        true(kind, point, 0)
        true(kind, point, 1)
        point.delete()


run(body)
