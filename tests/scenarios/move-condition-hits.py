# scenario: guest=linux cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,software-breakpoint,single-step
"""A live migration while both vCPUs pass a false condition all the time: every call is met once, on one side or on the other."""

import os

from fleet import *
from moving import *
from rules import *

CALLS = 60


def go_with_it(vm: Vm) -> None:
    """A new gdb in this one's place: gdb 13 does not survive a second connection behind the end of an inferior."""
    os.environ.update(GDB_TARGET=vm.address, MOVED="yes")
    os.execvp("gdb-multiarch", ["gdb-multiarch", "-nx", "-batch", "-x", __file__])


def counted() -> int:
    return sum(counters())


def all_met() -> int:
    """Stops in the agent, and compares what the guest has counted. A call is met before it counts."""
    poll()
    calls, found = counted(), counts("software breakpoint", SYSCALL)
    check(calls <= found.reached <= calls + 2, f"{found.reached} calls were met, the guest has counted {calls}")
    equal("calls that counted", found.hits, 0)
    return calls


def body() -> None:
    evaluates()
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    if "MOVED" not in os.environ:
        poll()
        point = sbreak(SYSCALL)
        point.condition = f"${ARCH.arguments[0]} == 0x7777"
        for cpu in range(2):
            set_u64(sym("syscalls") + 8 * cpu, 0)
        command("hammer")
        while all_met() < CALLS:
            pass
        moving = Meanwhile(migrate, FIRST)
        gdb.execute("continue", to_string=True)
        if gdb.selected_inferior().pid:
            raise Failure(f"a stop that was not asked for: {where(reg('pc'))}")
        go_with_it(moving.result())

    # The VM goes on with the condition, whatever gdb knows.
    before = all_met()
    run_for(1.0)
    check(all_met() >= before + CALLS, "the guest does not go on")
    poll()
    command("calm")
    done("calm")


run(body)
