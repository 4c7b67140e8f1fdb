# scenario: guest=linux cpus=2 timeout=300 moves=yes
"""Live migrations while both vCPUs run into a breakpoint all the time: no hit is lost, and none is told twice."""

import time

from fleet import *
from moving import *

MIGRATIONS = 3
HITS = 40


class Hits:
    """Each hit, with the vCPU and how often the guest had counted there before it: a hit's name in the guest's own terms."""

    def __init__(self) -> None:
        self.seen: dict[int, list[int]] = {0: [], 1: []}

    def take(self) -> None:
        cpu = gdb.selected_thread().num - 1
        self.seen[cpu].append(self.counted(cpu))

    def counted(self, cpu: int) -> int:
        return u64(sym("syscalls") + 8 * cpu)


def body() -> None:
    poll()
    command("hammer")
    hbreak(HARDWARE)
    hits, vm = Hits(), FIRST
    for _ in range(MIGRATIONS):
        gdb.execute("set breakpoint always-inserted on", to_string=True)
        moving = Meanwhile(migrate, vm)
        deadline = time.monotonic() + 120
        while True:
            try:
                gdb.execute("continue", to_string=True)
                if not gdb.selected_inferior().pid:
                    # It was told that the VM has moved.
                    break
                check(reg("pc") == sym(HARDWARE), f"a stop that was not asked for: {where(reg('pc'))}")
                hits.take()
            except gdb.error as error:
                print(f"the VM has gone: {error}")
                break
            check(moving.error is None, f"the migration failed: {moving.error}")
            check(time.monotonic() < deadline, "the VM does not move")
        vm = moving.result()
        forget()
        meet(vm)
        check(f"hardware breakpoint at {sym(HARDWARE):#x}" in listed(), f"the breakpoint is lost:\n{listed()}")
        if reg("pc") == sym(HARDWARE):
            hits.take()
        hbreak(HARDWARE)
        for _ in range(HITS):
            cont()
            hits.take()
    for cpu, seen in hits.seen.items():
        # What was told to a client that went away before it could look is told again to the next one.
        once = sorted(set(seen))
        check(len(seen) - len(once) <= MIGRATIONS, f"vCPU {cpu}: hits are told twice: {seen}")
        equal(f"hits of vCPU {cpu}", once, list(range(once[0], once[0] + len(once))))
    delete_all()
    poll()
    command("calm")
    done("calm")


run(body)
