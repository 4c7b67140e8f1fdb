# scenario: guest=bare cpus=2 timeout=240 moves=yes needs=hardware-breakpoint,single-step
"""A bare-metal guest that is saved at a breakpoint, restored, and moved on is at the same stop each time, with its registers and breakpoints."""

from bare import *
from fleet import *
from gdbcase import *


def leave() -> None:
    """Leaves the VM as it is: gdb itself must know nothing of what was set."""
    gdb.execute("disconnect", to_string=True)
    delete_all()


def meet(vm: Vm, expected: tuple[int, ...], calls: int) -> None:
    """Connects to a VM that has arrived, in which gdb sets nothing."""
    connect(vm.address)
    equal("registers", registers(), expected)
    equal("thread", gdb.selected_thread().num, 1)
    equal("calls that the guest counted", calls_so_far(), calls)
    listed = gdb.execute("monitor breakpoints", to_string=True)
    for place in ("slot_2", "slot_5", "finished"):
        check(f"hardware breakpoint at {sym(place):#x}" in listed, f"no breakpoint at {place} in\n{listed}")


def registers() -> tuple[int, ...]:
    return tuple(reg(name) for name in ARCH.general)


def calls_so_far() -> int:
    return sum(u64(sym("slot_calls") + 8 * n) for n in range(16))


def body() -> None:
    select("slots", timer_period=0)
    gdb.execute("set breakpoint always-inserted on", to_string=True)
    cont_to(hbreak("slot_2"))
    for place in ("slot_5", "finished"):
        hbreak(place)
    at_2 = registers()
    snapshot(FIRST, "bare")
    leave()

    gdb.execute("set breakpoint always-inserted off", to_string=True)
    other = restore("bare")
    meet(other, at_2, 2)
    cont()
    equal("pc", reg("pc"), sym("slot_5"))
    at_5 = registers()
    third = migrate(other)
    leave()
    check((ended(other, 20.0) or "").startswith("exit code 0"), "the source has not ended")
    meet(third, at_5, 5)
    step_on("a step from the breakpoint")
    cont()
    equal("pc", reg("pc"), sym("finished"))
    equal("calls that the guest counted", calls_so_far(), 16)


run(body)
