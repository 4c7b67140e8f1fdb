# scenario: guest=linux cpus=2 timeout=300 moves=yes needs=hardware-breakpoint,single-step
"""Conditions and ignore counts go with a VM that is saved and restored, and from there to another one by migration."""

from fleet import *
from moving import *
from rules import *

CALLS = 400
AT = 250


def set_up() -> None:
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    point = hbreak(HARDWARE)
    point.condition = f"{ARCH.cpu_mark} == {cpu_mark(1):#x} && {doubleword(sym('syscalls') + 8)} >= {AT}"
    monitor(f"ignore {sym(HARDWARE):#x} 5")
    hbreak("agent_done")


def expect_the_hit() -> None:
    """Five calls that count are passed, the sixth stops."""
    equal("place", where_it_is(), HARDWARE)
    equal("thread", gdb.selected_thread().num, 2)
    equal("calls that its vCPU has counted", u64(sym("syscalls") + 8), AT + 5)
    found = counts("hardware breakpoint", HARDWARE)
    equal("hits, and hits to ignore", (found.hits, found.ignore), (6, 0))


def body() -> None:
    evaluates()
    poll()
    set_up()
    command("syscalls", CALLS)
    saved = snapshot(FIRST, "conditions")
    check("saved in" in saved, saved)
    forget()

    # Nobody tells gdb of the condition there, and gdb sets nothing.
    other = restore("conditions")
    meet(other)
    check("conditions" in monitor("hits"), monitor("hits"))
    equal("hits to ignore", counts("hardware breakpoint", HARDWARE).ignore, 5)
    cont()
    expect_the_hit()
    reached = counts("hardware breakpoint", HARDWARE).reached
    check(AT + 6 <= reached <= AT + 6 + CALLS, f"{reached} calls were met")

    # And on to a third one, with other numbers in it.
    monitor(f"condition {sym(HARDWARE):#x} *{sym('syscalls') + 8:#x} == {CALLS - 1}")
    landing = receive()
    send(other, landing)
    forget()
    meet(landing)
    while where_it_is() == HARDWARE:
        cont()
        if where_it_is() == HARDWARE:
            # vCPU 0 meets it as well, and vCPU 1 runs until that stop has reached it.
            expected = (CALLS - 1,) if gdb.selected_thread().num == 2 else (CALLS - 1, CALLS)
            counted = u64(sym("syscalls") + 8)
            check(counted in expected, f"vCPU 1 has counted {counted} calls, expected {expected}")
    equal("place", where_it_is(), "agent_done")
    equal("calls that the guest counted", counters(), [CALLS, CALLS])


run(body)
