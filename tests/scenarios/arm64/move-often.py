# scenario: guest=linux cpus=2 timeout=900 moves=yes
"""Migrations in a row, the guest running, with 6 hardware breakpoints, 4 watchpoints and 100 software breakpoints.

None is lost and none is doubled, each hits where it should, and no byte of the kernel's text changes. 200 with
MIGRATIONS=200 in the environment, 20 without.
"""

import os

from fleet import *
from moving import *

MIGRATIONS = int(os.environ.get("MIGRATIONS", "20"))
LOOK_EVERY = 10
# The first byte in a snapshot's memory.
RAM_BASE = int(os.environ["RAM_BASE"], 16)
# 11 MiB, most of Debian's kernel's text.
TEXT_PAGES = 2816
SOFTWARE_COUNT = 100


def physical(name: str) -> int:
    return int(gdb.execute(f"monitor translate {sym(name):#x}", to_string=True).split()[-1], 16)


def kernel_text(name: str) -> str:
    """A checksum of it in a snapshot: from the first function to the last one that a breakpoint is on, and then some."""
    page = (physical("_stext") - RAM_BASE) // PAGE
    code, text = shell(f"dd if={name}/memory bs={PAGE} skip={page} count={TEXT_PAGES} 2>/dev/null | md5sum")
    equal("exit code", code, 0)
    return text


def arm_many() -> None:
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    for location in (HARDWARE, "agent_done", NEVER, "panic", "kernel_restart", "die"):
        hbreak(location)
    for n in range(2):
        watch(sym("syscalls") + 8 * n, 8)
    for n in range(2):
        watch(sym("arena") + 4096 + 64 * n, 8)
    sbreak(SOFTWARE)
    for n in range(SOFTWARE_COUNT - 1):
        sbreak(f"f_{n:03}")


def hop(vm: Vm) -> Vm:
    to = receive()
    send(vm, to)
    check((ended(vm, 10.0) or "").startswith("exit code 0"), "the source has not ended")
    return to


def begin_a_round(places: dict[str, int]) -> None:
    """Without a breakpoint of our own, for which no slot is left, whatever address space the vCPUs are in."""
    gdb.execute("monitor phys on", to_string=True)
    for name, value in (("argument", 1), ("command", COMMANDS.index("syscalls"))):
        set_mem(places[name], value.to_bytes(8, "little"))
    gdb.execute("monitor phys off", to_string=True)


def body() -> None:
    poll()
    snapshot(FIRST, "before")
    text = kernel_text("before")
    shell("rm -rf before")
    places = {name: physical(name) for name in ("argument", "command")}
    arm_many()
    expected = sorted(listed().splitlines())
    check("hardware breakpoint slots: 6 of 6 in use" in expected, f"{expected}")
    check("watchpoint slots: 4 of 4 in use" in expected, f"{expected}")
    equal("software breakpoints", sum(line.startswith("software") for line in expected), SOFTWARE_COUNT)

    vm = FIRST
    for n in range(MIGRATIONS):
        if n % LOOK_EVERY == 0:
            # The guest runs, and its client vanishes with it.
            moving = Meanwhile(hop, vm)
            try:
                cont()
            except gdb.error:
                pass
            vm = moving.result()
            forget()
            continue
        vm = hop(vm)
        if n % LOOK_EVERY == LOOK_EVERY - 1:
            meet(vm)
            equal(f"what is inserted after {n + 1} migrations", sorted(listed().splitlines()), expected)
            begin_a_round(places)
            a_whole_round(hits_to_the_end())
    snapshot(vm, "after")
    equal("checksum of the kernel's text", kernel_text("after"), text)


run(body)
