# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,single-step
"""Live migrations while both vCPUs run into a breakpoint all the time: no hit is lost, and none is told twice."""

import json
import os
import time

from fleet import *
from moving import *

MIGRATIONS = 3
# What gdb has out at that moment, to step over it, does not move. On a busy machine it has most of the time.
TRIES = 9
TRIES_FOR_ONE = 30
HITS = 40


class Hits:
    """Each hit, with the vCPU and how often the guest had counted there before it: a hit's name in the guest's own terms."""

    def __init__(self, seen: dict[str, list[int]]) -> None:
        self.seen = {int(cpu): list(numbers) for cpu, numbers in seen.items()}

    def take(self) -> None:
        cpu = gdb.selected_thread().num - 1
        self.seen[cpu].append(u64(sym("syscalls") + 8 * cpu))

    def all_there(self, migrations: int) -> None:
        for cpu, seen in self.seen.items():
            # What was told to a client that went away before it could look is told again to the next one.
            once = sorted(set(seen))
            check(len(seen) - len(once) <= migrations, f"vCPU {cpu}: hits are told twice: {seen}")
            equal(f"hits of vCPU {cpu}", once, list(range(once[0], once[0] + len(once))) if once else [])


def go_with_it(vm: Vm, hits: Hits, migrations: int, armed: int) -> None:
    """A new gdb in this one's place: gdb 13 does not survive a second connection behind the end of an inferior."""
    memory = {"vm": vm.number, "hits": hits.seen, "migrations": migrations, "armed": armed}
    os.environ.update(GDB_TARGET=vm.address, MEMORY=json.dumps(memory))
    os.execvp("gdb-multiarch", ["gdb-multiarch", "-nx", "-batch", "-x", __file__])


def run_until_it_moves(moving: Meanwhile, hits: Hits) -> None:
    deadline = time.monotonic() + 120 * PATIENCE
    while True:
        gdb.execute("continue", to_string=True)
        if not gdb.selected_inferior().pid:
            return
        if reg("pc") != sym(HARDWARE):
            # gdb has stepped over its breakpoint meanwhile, and can't put it back where the VM no longer is.
            moving.join(20 * PATIENCE)
            moved = not moving.is_alive() and moving.error is None
            check(moved, f"a stop that was not asked for: {where(reg('pc'))}")
            return
        hits.take()
        check(moving.error is None, f"the migration failed: {moving.error}")
        check(time.monotonic() < deadline, "the VM does not move")


def body() -> None:
    start = '{"vm": 0, "hits": {"0": [], "1": []}, "migrations": 0, "armed": 0}'
    memory = json.loads(os.environ.get("MEMORY", start))
    hits, migrations, armed = Hits(memory["hits"]), memory["migrations"], memory["armed"]
    vm = Vm({"vm": memory["vm"], "address": os.environ["GDB_TARGET"]})
    if migrations == 0:
        poll()
        command("hammer")
    elif f"hardware breakpoint at {sym(HARDWARE):#x}" in listed():
        armed += 1
        if reg("pc") == sym(HARDWARE):
            hits.take()
    else:
        # gdb had it out at that moment, to step over it: what is not set does not move.
        hits.all_there(migrations)
        hits = Hits({"0": [], "1": []})
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    point = hbreak(HARDWARE)
    for _ in range(HITS):
        cont_to(point)
        hits.take()
    if migrations < (TRIES if armed else TRIES_FOR_ONE) and armed < MIGRATIONS:
        moving = Meanwhile(migrate, vm)
        run_until_it_moves(moving, hits)
        go_with_it(moving.result(), hits, migrations + 1, armed)
    hits.all_there(migrations)
    check(armed > 0, f"the breakpoint was in at none of {migrations} migrations")
    delete_all()
    poll()
    command("calm")
    done("calm")


run(body)
