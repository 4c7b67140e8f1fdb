"""What the scenarios that move a Linux guest share: breakpoints of every kind on the way of one command of the agent."""

from __future__ import annotations

import gdb

from fleet import Vm
from gdbcase import *
from linux import *

# One round of the agent's "syscalls" goes through all of them, on both vCPUs, and nothing else in the guest does.
HARDWARE = SYSCALL
# Not on the instruction behind it either: gdb steps over a breakpoint, and what it meets there is the end of a step.
SOFTWARE = ARCH.behind_getpid
# Of debug registers for everything `poll` needs one as well.
DONE_KIND, break_done = ("software breakpoint", sbreak) if ARCH.slots else ("hardware breakpoint", hbreak)
# Among the hits of a round: the counters that were found changed at hits of their watch.
CHANGES = "changed counters"


def arm() -> None:
    """Sets everything, and keeps it inserted while the guest is stopped: otherwise gdb takes it out at every stop."""
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    hbreak(HARDWARE)
    sbreak(SOFTWARE)
    watch(sym("syscalls"), 16)
    break_done("agent_done")


def forget() -> None:
    """Leaves a VM as it is, and everything in it: gdb itself must know nothing of what was set."""
    try:
        gdb.execute("disconnect", to_string=True)
    except gdb.error:
        pass
    delete_all()


def meet(vm: Vm) -> Stop:
    """Connects to another VM; where it is stopped."""
    gdb.execute("set breakpoint always-inserted off", to_string=True)
    connect(vm.address)
    return Stop(None)


def listed() -> str:
    return gdb.execute("monitor breakpoints", to_string=True)


def everything_listed() -> None:
    """The session has what `arm` has set, whatever gdb knows."""
    text = listed()
    for kind, address in (
        ("hardware breakpoint", HARDWARE), (DONE_KIND, "agent_done"),
        ("software breakpoint", SOFTWARE), ("write watchpoint", "syscalls"),
    ):
        check(f"{kind} at {sym(address):#x}" in text, f"no {kind} at {address} in\n{text}")


def where_it_is() -> str:
    """Which of the breakpoints the current thread is at."""
    pc = reg("pc")
    for name in (HARDWARE, SOFTWARE, "agent_done"):
        if pc == sym(name):
            return name
    return "syscalls" if where(pc).split(" ")[0] in ("syscall_thread", "main") else where(pc)


def hits_of_a_round() -> dict[str, int]:
    """Runs one round of the agent with what the session has, and counts where it stops."""
    poll()
    command("syscalls", 1)
    return hits_to_the_end()


def hits_to_the_end() -> dict[str, int]:
    """The same, for a round that has begun."""
    hits: dict[str, int] = {}
    before = [0, 0]
    while True:
        cont()
        place = where_it_is()
        hits[place] = hits.get(place, 0) + 1
        if place == "syscalls":
            now = counters()
            hits[CHANGES] = hits.get(CHANGES, 0) + sum(a != b for a, b in zip(before, now))
            before = now
        if place == "agent_done":
            return hits
        check(sum(hits.values()) < 1000, f"it never ends: {hits}")


def a_whole_round(hits: dict[str, int], known: bool = False) -> None:
    """Every breakpoint, as often as the guest itself comes by, on both vCPUs.

    The counters are cleared first, which writes them as well: gdb does not show a write that changes nothing for a watch
    that it knows. Nor does it show the second of two hits when both vCPUs have written before the first one is told.
    """
    equal("hits of the hardware breakpoint", hits.get(HARDWARE), 2)
    equal("hits of the software breakpoint", hits.get(SOFTWARE), 2)
    counted = hits.get("syscalls", 0)
    if known:
        check(counted in (1, 2) and hits[CHANGES] == 2, f"hits {hits}")
    else:
        check(counted in (3, 4), f"hits {hits}")
    equal("calls that the guest counted", counters(), [1, 1])


__all__ = [name for name in dir() if not name.startswith("_")]
